"""Native host-local beside the executed one: the same results, the same files, the same error codes."""

from __future__ import annotations

import ipaddress
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeworker.plugins.native.ipam import host_local
from tests.support.plugins.ipam_harness import Outcome, executed, native, needs_plugins, network, on_disk, reserved

pytestmark = needs_plugins

VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"]

SOUND: dict[str, dict[str, Any]] = {
    "a subnet": {"subnet": "10.1.0.0/28"},
    "bounds": {"subnet": "10.1.0.0/28", "rangeStart": "10.1.0.4", "rangeEnd": "10.1.0.6"},
    "a gateway within the bounds": {"subnet": "10.1.0.0/28", "rangeStart": "10.1.0.1", "gateway": "10.1.0.2"},
    "a gateway elsewhere": {"subnet": "10.1.0.0/28", "gateway": "192.0.2.1"},
    "a gateway of the other family": {"subnet": "10.1.0.0/28", "gateway": "fd00::1"},
    "empty texts and nulls": {"subnet": "10.1.0.0/28", "gateway": "", "rangeEnd": None, "routes": None, "ranges": None},
    "the network's own address": {"subnet": "10.1.0.0/28", "rangeStart": "10.1.0.0", "rangeEnd": "10.1.0.15"},
    "a set of two ranges": {"ranges": [[{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/29"}]]},
    "two families": {"ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "FD00:0:0::/120"}]]},
    "old style before ranges": {"subnet": "10.1.0.0/29", "ranges": [[{"subnet": "fd00::/120"}]]},
    "routes": {
        "subnet": "10.1.0.0/28",
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.1.2/8", "gw": "10.1.0.3"}, {"dst": "2001:DB8::/32", "gw": ""}],
    },
    "IPv4 in IPv6 notation": {
        "subnet": "10.1.0.0/28",
        "rangeStart": "::ffff:10.1.0.5",
        "routes": [{"dst": "::ffff:10.0.0.0/104", "gw": "::ffff:10.1.0.9"}],
    },
}

UNSOUND: dict[str, dict[str, Any]] = {
    "no range": {},
    "no range in a set": {"ranges": [[]]},
    "no address": {"subnet": "nowhere/24"},
    "no prefix length": {"subnet": "10.1.0.0"},
    "a netmask": {"subnet": "10.1.0.0/255.255.255.0"},
    "a long prefix": {"subnet": "10.1.0.0/33"},
    "a zone": {"subnet": "fe80::%eth0/64"},
    "leading zeros": {"subnet": "10.01.0.0/24"},
    "host bits": {"subnet": "10.1.0.3/24"},
    "too small": {"subnet": "10.1.0.0/31"},
    "too small for IPv6": {"subnet": "fd00::/127"},
    "IPv4 in IPv6 notation": {"subnet": "::ffff:10.1.0.0/120"},
    "a start outside": {"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"},
    "an end outside": {"subnet": "10.1.0.0/24", "rangeEnd": "10.2.0.1"},
    "an end before the start": {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"},
    "a start of the other family": {"subnet": "10.1.0.0/24", "rangeStart": "fd00::1"},
    "a gateway that is none": {"subnet": "10.1.0.0/24", "gateway": "10.1.0.256"},
    "overlap in a set": {"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/16"}]]},
    "overlap of sets": {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]]},
    "mixed families": {"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]},
    "a number": {"subnet": 10},
    "a route without a prefix length": {"subnet": "10.1.0.0/24", "routes": [{"dst": "10.0.0.0"}]},
    "a gateway of a route that is none": {"subnet": "10.1.0.0/24", "routes": [{"dst": "10.0.0.0/8", "gw": "x"}]},
    "resolvConf that is not there": {"subnet": "10.1.0.0/24", "resolvConf": "/nowhere/resolv.conf"},
}

RANGE = {"subnet": "10.1.0.0/28"}
REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "in CNI_ARGS": ({}, "IP=10.1.0.7"),
    "in CNI_ARGS with a prefix length": ({}, "IP=10.1.0.7/16"),
    "in CNI_ARGS, empty": ({}, "IP="),
    "in args": ({"args": {"cni": {"ips": ["10.1.0.8"]}}}, ""),
    "in runtimeConfig": ({"runtimeConfig": {"ips": ["10.1.0.9/28"]}}, ""),
    "twice the same": ({"runtimeConfig": {"ips": ["10.1.0.9"]}}, "IP=10.1.0.9"),
    "two where there is one": ({"runtimeConfig": {"ips": ["10.1.0.9"]}}, "IP=10.1.0.8"),
    "the gateway": ({}, "IP=10.1.0.1"),
    "outside": ({}, "IP=10.9.0.1"),
    "of the other family": ({}, "IP=fd00::1"),
    "two in CNI_ARGS": ({}, "IP=10.1.0.7,10.1.0.8"),
    "an empty text": ({"runtimeConfig": {"ips": [""]}}, ""),
    "no address": ({"args": {"cni": {"ips": ["x"]}}}, ""),
    "unknown CNI_ARGS": ({}, "K8S_POD_NAME=web"),
    "unknown CNI_ARGS, to be ignored": ({}, "IgnoreUnknown=TRUE;K8S_POD_NAME=web;IP=10.1.0.7"),
    "no word for ignoring": ({}, "IgnoreUnknown=yes"),
    "ranges of the runtime": ({"runtimeConfig": {"ipRanges": [[{"subnet": "10.3.0.0/29"}]]}}, ""),
}


class Both:
    """The same calls to both plugins, each with its own folder."""

    def __init__(self, base: Path) -> None:
        self._executed, self._native = base / "executed", base / "native"

    def do(
        self,
        verb: str,
        ipam: dict[str, Any],
        version: str = "1.0.0",
        args: str = "",
        container: str = "c1",
        ifname: str = "net1",
        others: dict[str, Any] | None = None,
    ) -> Outcome:
        """Return what both do, which is the same to the runtime and on disk."""
        one, other = (network(each, ipam, version, **(others or {})) for each in (self._executed, self._native))
        theirs = executed(verb, one, container, ifname, args)
        ours = native(verb, other, container, ifname, args)
        assert ours.seen == theirs.seen, (ours.message, theirs.message)
        if theirs.code:
            assert reserved(self._native) == reserved(self._executed)
        else:
            assert on_disk(self._native) == on_disk(self._executed)
        return ours


@pytest.fixture
def both(tmp_path: Path) -> Both:
    return Both(tmp_path)


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_life_equals_the_reference_plugins(both: Both, version: str, name: str) -> None:
    ipam = SOUND[name]
    for container in ("c1", "c2", "c3"):
        assert both.do("ADD", ipam, version, container=container).code == 0
    both.do("DEL", ipam, version, container="c1")
    both.do("DEL", ipam, version, container="c1")
    for container in ("c4", "c5"):
        both.do("ADD", ipam, version, container=container)
    if version in {"0.4.0", "1.0.0"}:
        both.do("CHECK", ipam, version, container="c2")
        assert both.do("CHECK", ipam, version, container="c1").code == 999
        assert both.do("CHECK", ipam, version, container="c2", ifname="other").code == 999
    for container in ("c2", "c3", "c4", "c5"):
        both.do("DEL", ipam, version, container=container)


@pytest.mark.parametrize("name", UNSOUND)
def test_a_configuration_that_is_not_sound_is_refused_alike(both: Both, name: str) -> None:
    assert both.do("ADD", UNSOUND[name]).code == 999


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_met_or_refused_alike(both: Both, name: str) -> None:
    others, args = REQUESTS[name]
    if both.do("ADD", RANGE, args=args, others=others).code == 0:
        both.do("ADD", RANGE, args=args, container="c2", others=others)
        both.do("DEL", RANGE, args=args, others=others)


def test_a_range_is_used_up_alike(both: Both) -> None:
    ipam = {"ranges": [[{"subnet": "10.1.0.0/28"}], [{"subnet": "10.2.0.0/30"}, {"subnet": "10.3.0.0/30"}]]}
    for container in ("c1", "c2"):
        assert both.do("ADD", ipam, container=container).code == 0
    assert both.do("ADD", ipam, container="c3").code == 999
    both.do("DEL", ipam, container="c1")
    assert both.do("ADD", ipam, container="c4").code == 0


def test_resolv_conf_is_suggested_alike(both: Both, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# nameserver 192.0.2.9\n;x\n\n nameserver\t192.0.2.1 more\nnameserver 192.0.2.2\ndomain one\ndomain two\n"
        "search a b\nsearch c\noptions ndots:2 rotate\nnameserver\nsortlist 1.2.3.4\n"
    )
    result = both.do("ADD", {**RANGE, "resolvConf": str(path)}).result
    assert result["dns"] == {
        "nameservers": ["192.0.2.1", "192.0.2.2"],
        "domain": "two",
        "search": ["a", "b", "c"],
        "options": ["ndots:2", "rotate"],
    }


def test_an_address_in_the_form_of_old_plugins_is_respected_and_freed_alike(both: Both, tmp_path: Path) -> None:
    both.do("ADD", RANGE, container="c0")
    for way in ("executed", "native"):
        (tmp_path / way / "net" / "10.1.0.3").write_text("old\n")
    assert both.do("ADD", RANGE, container="old").code == 999
    both.do("CHECK", RANGE, container="old")
    both.do("DEL", RANGE, container="old")
    assert set(reserved(tmp_path / "native")) == {"10.1.0.2"}


def test_the_last_reserved_file_may_be_missing_or_malformed(both: Both, tmp_path: Path) -> None:
    for number, nonsense in enumerate(("", "x", "10.1.0.5\n", "192.0.2.1", "10.1.0.14")):
        both.do("ADD", RANGE, container=f"a{number}")
        for way in ("executed", "native"):
            (tmp_path / way / "net" / "last_reserved_ip.0").write_text(nonsense)
        both.do("ADD", RANGE, container=f"b{number}")


def test_a_name_that_leads_out_of_the_folder_is_refused_alike(tmp_path: Path) -> None:
    for name in ("../net", "", ".hidden", "a/b"):
        config = {**network(tmp_path, RANGE), "name": name}
        for verb in ("ADD", "DEL"):
            assert native(verb, config).seen == executed(verb, config).seen == (None, 7)
    assert not list(tmp_path.iterdir())


def addresses_in(subnet: str) -> st.SearchStrategy[str]:
    network_ = ipaddress.ip_network(subnet)
    return st.integers(0, network_.num_addresses - 1).map(lambda at: str(network_[at]))


@st.composite
def ranges(draw: st.DrawFn) -> dict[str, str]:
    subnet = draw(st.sampled_from(["10.1.0.0/29", "10.1.0.8/30", "10.2.0.0/28", "fd00::/125", "fd01::/126"]))
    found = {"subnet": subnet}
    for key in ("rangeStart", "rangeEnd", "gateway"):
        if draw(st.booleans()):
            found[key] = draw(addresses_in(subnet))
    return found


def ends_before_it_starts(config: dict[str, str]) -> bool:
    """The executed plugin then runs on beyond the subnet; the native one refuses."""
    last = ipaddress.IPv4Network(config["subnet"]).broadcast_address if "." in config["subnet"] else None
    return "rangeEnd" not in config and config.get("rangeStart") == str(last)


sets = st.lists(
    st.lists(ranges().filter(lambda each: not ends_before_it_starts(each)), min_size=1, max_size=2), max_size=2
)
calls = st.lists(st.tuples(st.sampled_from("AAADC"), st.integers(0, 4)), max_size=12)
requests = st.sampled_from(["", "", "IP=10.1.0.3", "IP=10.2.0.5", "IP=fd00::3"])


@settings(max_examples=80)
@given(old_style=ranges() | st.just({}), sets=sets, calls=calls, version=st.sampled_from(VERSIONS), args=requests)
def test_generated_lives_are_the_same(
    old_style: dict[str, str], sets: list[list[dict[str, str]]], calls: list[tuple[str, int]], version: str, args: str
) -> None:
    if ends_before_it_starts(old_style or {"subnet": ""}):
        return
    ipam = {**old_style, "ranges": sets}
    with tempfile.TemporaryDirectory() as base:
        both = Both(Path(base))
        alive: set[int] = set()
        for verb, container in calls:
            name = f"c{container}"
            if verb == "A" and container not in alive:
                if both.do("ADD", ipam, version, args, container=name).code:
                    # Both give back what they took, but the native one may not have come as far.
                    return
                alive.add(container)
            elif verb == "D" and alive:
                both.do("DEL", ipam, version, container=name)
                alive.discard(container)
            elif verb == "C" and alive and version in {"0.4.0", "1.0.0"}:
                both.do("CHECK", ipam, version, container=name)


@pytest.mark.parametrize(
    ("ipam", "others"),
    [
        ({"subnet": "10.1.0.0/24", "rangeFromFile": "/x"}, {}),
        ({"Subnet": "10.1.0.0/24"}, {}),
        ({"ranges": [[{"subnet": "10.1.0.0/24", "exclude": []}]]}, {}),
        ({"subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0", "metric": 1}]}, {}),
        ({"subnet": "10.1.0.0/24", "routes": [None]}, {}),
        ({"subnet": "10.1.0.0/24", "dataDir": "relative"}, {}),
        ({"subnet": "10.1.0.0/24"}, {"RuntimeConfig": {}}),
        ({"subnet": "10.1.0.0/24"}, {"runtimeConfig": {"IPs": []}}),
        ({"subnet": "10.1.0.0/24"}, {"runtimeConfig": {"ipRanges": [[{"subnet": "10.3.0.0/24", "x": 1}]]}}),
        ({"subnet": "10.1.0.0/24"}, {"args": {"CNI": {}}}),
    ],
)
def test_unknown_options_are_left_to_the_binary(tmp_path: Path, ipam: dict[str, Any], others: dict[str, Any]) -> None:
    assert host_local.unsupported(network(tmp_path, ipam, **others))


def test_known_and_foreign_keys_are_native(tmp_path: Path) -> None:
    others = {"args": {"cni": {"mac": "x"}, "other": 1}, "runtimeConfig": {"mac": "x", "portMappings": []}, "mtu": 9}
    for ipam in SOUND.values():
        assert host_local.unsupported(network(tmp_path, ipam, **others)) == ""


def test_options_of_newer_routes_are_kept(tmp_path: Path) -> None:
    route = {"dst": "10.0.0.0/8", "mtu": 1400, "advmss": 1360, "priority": 5, "table": 100, "scope": 253}
    found = native("ADD", network(tmp_path, {**RANGE, "routes": [route]}, "1.1.0"))
    assert found.result["routes"] == [route]
    assert found.result["cniVersion"] == "1.1.0"


def test_a_range_that_starts_behind_its_default_end_is_refused(tmp_path: Path) -> None:
    found = native("ADD", network(tmp_path, {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.255"}))
    assert found.code == 999
    assert "ends before it starts" in found.message


def test_files_are_made_with_the_same_modes(both: Both, tmp_path: Path) -> None:
    both.do("ADD", RANGE)
    modes = [
        {each.name: oct(each.stat().st_mode) for each in (tmp_path / way / "net").iterdir()}
        | {"": oct(os.stat(tmp_path / way / "net").st_mode)}
        for way in ("executed", "native")
    ]
    assert modes[0] == modes[1]
