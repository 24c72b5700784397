"""Whatever a configuration says, a native plugin does it or refuses it in a sentence; it never breaks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeworker.plugins.native import registry
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.plugin_config import PluginConfig
from nodeworker.plugins.spec.results import Result
from tests.support.plugins.kernel_view import container, node
from tests.support.plugins.native_harness import BOTH, card, ip, names

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

EXAMPLES = int(os.environ.get("PLUMBLINE_EXAMPLES", "25"))
CHANGING = {"tuning", "sbr", "vrf", "passthru"}
VALID: dict[str, dict[str, Any]] = {
    "bridge": {"bridge": "br0"},
    "host-device": {"device": "card0"},
    "macvlan": {"master": "par0"},
    "ipvlan": {"master": "par0"},
    "vlan": {"master": "par0", "vlanId": 7},
    "vxlan": {"vxlanId": 7, "master": "par0"},
    "vrf": {"vrfname": "red"},
    "tuning": {"mtu": 1400},
}
KERNEL_WORDS = (
    "par0",
    "br0",
    "net1",
    "lo",
    "eth9",
    "02:00:5e:10:00:01",
    "10.77.0.9",
    "fd77::9",
    "239.1.1.7",
    "l2",
    "bridge",
)
NUMBERS = (-(2**63), -1, 0, 1, 7, 1280, 4095, 65536, 2**31, 2**32 - 1, 2**32, 2**63, 2**64)
TEXTS = (
    "",
    " ",
    ".",
    "..",
    "/",
    "a/b",
    "../x",
    "%d",
    "a" * 16,
    "a" * 300,
    "\0",
    "a\0b",
    "ü",
    "\n",
    "-1",
    "1500",
    "0x5",
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(KERNEL_WORDS),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=2),
    st.dictionaries(
        st.sampled_from((*TEXTS, *KERNEL_WORDS, "id", "minID", "maxID", "mac", "net.ipv4.conf.IFNAME.arp_filter")),
        SCALARS,
        max_size=3,
    ),
    st.lists(
        st.dictionaries(st.sampled_from(["id", "minID", "maxID", "address", "gateway", "dst"]), SCALARS, max_size=3),
        max_size=2,
    ),
)


def keys(plugin: Any) -> list[str]:
    """Return the keys that *plugin* reads."""
    structs = [PluginConfig] + [
        each for each in vars(plugin).values() if isinstance(each, type) and issubclass(each, PluginConfig)
    ]
    found = {field.encode_name for struct in structs for field in msgspec.structs.fields(struct)}
    return sorted(found - {"type", "ipam", "prevResult", "name", "dataDir"})


@pytest.fixture(scope="module")
def netns() -> Iterator[str]:
    with node(), container() as path:
        card()
        card("card0")
        yield path


def fresh(netns: str, kind: str) -> Result | None:
    """Remove interfaces from the container, and return the input of a plugin that changes an interface."""
    for name in names(netns) - {"lo"}:
        ip(f"link del {name}", netns)
    if kind not in CHANGING:
        return None
    ip("link add net1 type bridge", netns)
    return Result(cni_version="1.0.0", interfaces=BOTH.interfaces, ips=BOTH.ips)


@pytest.mark.parametrize("kind", sorted(registry._INTERFACES))
def test_no_configuration_breaks_a_plugin(netns: str, kind: str, tmp_path: Path) -> None:
    plugin = registry.interface_plugin(kind)
    assert plugin is not None
    strange = st.dictionaries(st.sampled_from(keys(plugin)), VALUES, min_size=1, max_size=3)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(strange, st.one_of(st.none(), st.sampled_from((*TEXTS, *KERNEL_WORDS))), st.booleans())
    def survive(options: dict[str, Any], mac: str | None, addressed: bool) -> None:
        config = {"cniVersion": "1.0.0", "name": "net", "type": kind, **VALID.get(kind, {}), **options}
        if "dataDir" in vars(plugin):
            config["dataDir"] = str(tmp_path)
        reason = plugin.unsupported(config)
        assert isinstance(reason, str)
        before = fresh(netns, kind)
        call = Call(
            container_id="sandbox",
            netns=netns,
            ifname="net1",
            config=config,
            args={} if mac is None else {"MAC": mac},
            prev_result=before,
        )
        result = before
        with contextlib.suppress(NativeError):
            result = plugin.add(call, BOTH if addressed else None)
        with contextlib.suppress(NativeError):
            plugin.check(msgspec.structs.replace(call, prev_result=result))
        with contextlib.suppress(*([NativeError] if reason else [])):
            plugin.delete(msgspec.structs.replace(call, prev_result=result))

    survive()


ADDRESSING = {
    "host-local": ("subnet", "rangeStart", "rangeEnd", "gateway", "ranges", "routes", "resolvConf"),
    "static": ("addresses", "routes", "dns"),
}
ADDRESSES = (
    "10.77.0.0/24",
    "10.77.0.9",
    "10.77.0.9/32",
    "fd77::/64",
    "fd77::9",
    "0.0.0.0/0",
    "::/0",
    "10.77.0.0/33",
    "1",
)
ADDRESSES_OR_NOT = st.one_of(SCALARS, st.sampled_from(ADDRESSES))
SECTION = st.dictionaries(
    st.sampled_from(
        ["subnet", "rangeStart", "rangeEnd", "gateway", "address", "dst", "gw", "mtu", "priority", "table"]
    ),
    ADDRESSES_OR_NOT,
    max_size=3,
)
ADDRESSING_VALUES = st.one_of(ADDRESSES_OR_NOT, st.lists(SECTION, max_size=2), st.lists(st.lists(SECTION, max_size=2)))


@pytest.mark.parametrize("kind", sorted(registry._IPAM))
def test_no_configuration_breaks_an_ipam_plugin(netns: str, kind: str, tmp_path: Path) -> None:
    plugin = registry.ipam_plugin(kind)
    assert plugin is not None

    @settings(
        max_examples=4 * EXAMPLES,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(
        st.dictionaries(st.sampled_from(ADDRESSING[kind]), ADDRESSING_VALUES, max_size=4),
        st.dictionaries(st.sampled_from(["ips", "ipRanges", "mac"]), ADDRESSING_VALUES, max_size=1),
        st.dictionaries(st.sampled_from(["IP", "GATEWAY"]), st.sampled_from((*ADDRESSES, *TEXTS)), max_size=1),
    )
    def survive(options: dict[str, Any], runtime: dict[str, Any], args: dict[str, str]) -> None:
        ipam = {"type": kind, "dataDir": str(tmp_path)} | ({"subnet": "10.77.0.0/24"} if kind == "host-local" else {})
        if kind == "static":
            ipam.pop("dataDir")
        config = {
            "cniVersion": "1.0.0",
            "name": "net",
            "type": "macvlan",
            "ipam": ipam | options,
            "runtimeConfig": runtime,
        }
        reason = plugin.unsupported(config)
        assert isinstance(reason, str)
        call = Call(container_id="sandbox", netns=netns, ifname="net1", config=config, args=args)
        if reason:
            return
        with contextlib.suppress(NativeError):
            result = plugin.add(call)
            plugin.check(msgspec.structs.replace(call, prev_result=result))
        with contextlib.suppress(NativeError):  # a configuration that names no network's addresses has none to free
            plugin.delete(call)

    survive()
