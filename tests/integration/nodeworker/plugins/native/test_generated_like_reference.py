"""Generated configurations have the same result natively and with the reference's binaries.

A run uses the same few examples, which take a minute; ``PLUMBLINE_EXAMPLES`` sets the number of random ones instead,
as in ``PLUMBLINE_EXAMPLES=2000 pytest -k generated_like_reference``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from nodeworker.plugins.exec import PluginExecutor
from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.native.registry import AUTO, interface_plugin
from nodeworker.plugins.native.runner import NativeRunner
from tests.support.plugins.kernel_view import REFERENCE, container, differences, executed, node, view
from tests.support.plugins.native_harness import MODULES, kernel_has, names

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not (REFERENCE / "bridge").exists(), reason="the reference plugins are not installed"),
    pytest.mark.skipif(not shutil.which("nft"), reason="nft is not installed"),
    pytest.mark.skipif(not shutil.which("iptables-restore"), reason="iptables is not installed"),
]

EXAMPLES = int(os.environ.get("PLUMBLINE_EXAMPLES", "0"))
generated = settings(
    derandomize=not EXAMPLES,
    database=None,
    phases=[Phase.generate, *([Phase.shrink] if EXAMPLES else [])],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

FURNITURE = (
    "link add par0 mtu 1450 type veth peer name par1",
    "link set par0 up",
    "link set par1 up",
    "addr add 192.0.2.5/24 dev par0",
    "route add default via 192.0.2.1",
    "link add brx type bridge",
    "link add prt0 address 02:00:00:00:00:01 type veth peer name prt1",
    "link set prt0 master brx up",
    "link set prt1 up",
    "addr add 10.77.0.1/24 dev brx",
    "link add bry type bridge",
    "addr add 10.99.0.1/24 dev bry",
    "link add card0 mtu 1400 type veth peer name card1",
    "link set card0 up",
    "link set card1 up",
)
"""A card with a default route, a bridge in use, one with a conflicting address, and a card for host-device."""

WITH_CHECK = {"0.4.0", "1.0.0"}


class Seen(msgspec.Struct):
    """What a runtime and an administrator see of one attachment, from its ADD to its DEL."""

    code: int
    """Of the ADD's error; 0 without one."""
    attached: Any = None
    detached: Any = None
    files: Any = None


Verb = Callable[[str, Any], tuple[int, Any]]
"""Run a verb with a previous result; the exit code, or that of the error, and what was printed."""


def options(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


def mostly(*usual: Any, rarely: Sequence[Any]) -> st.SearchStrategy[Any]:
    """Return a choice in which what is refused comes up now and then."""
    return st.integers(0, 11).flatmap(lambda dice: st.sampled_from([*rarely] if dice == 7 else usual))


SWITCH = st.booleans()
MTUS = mostly(0, 1280, 1400, 1450, rarely=[9000, 70000])
MACS = mostly("02:00:5e:10:00:01", "02-00-5E-10-00-02", rarely=["02:00:5e", "01:00:5e:00:00:01"])
DNS = options(
    nameservers=st.just(["10.1.1.1"]), domain=st.just("example.com"), search=st.just(["a.example", "b.example"])
)
ROUTES = st.lists(
    mostly(
        {"dst": "10.88.0.0/16"},
        {"dst": "10.91.0.0/16"},
        {"dst": "0.0.0.0/0"},
        rarely=[
            {"dst": "10.89.0.0/16", "gw": "10.77.0.9"},
            {"dst": "::/0"},
            {"dst": "fd88::/64", "gw": "fd77::9"},
            {"dst": "10.90.0.0/16", "gw": "10.90.0.1"},
        ],
    ),
    max_size=2,
    unique_by=lambda route: route["dst"],
)
LONE = "10.79.0.5/32"
"""An address without neighbours, which the reference can't put on a wire."""
STATED = st.sampled_from(
    [
        {"address": "10.77.0.5/24", "gateway": "10.77.0.1"},
        {"address": "10.77.0.6/24"},
        {"address": "10.78.0.5/23", "gateway": "10.78.0.1"},
        {"address": LONE, "gateway": "10.77.0.1"},
        {"address": "fd77::5/64", "gateway": "fd77::1"},
        {"address": "fd78::5/112"},
    ]
)
STATIC = st.fixed_dictionaries(
    {
        "type": st.just("static"),
        "addresses": st.lists(STATED, min_size=1, max_size=3, unique_by=lambda each: each["address"]),
    },
    optional={"routes": ROUTES, "dns": DNS},
)
RANGE = mostly(
    {"subnet": "10.77.0.0/24"},
    {"subnet": "10.76.0.0/24", "rangeStart": "10.76.0.20", "rangeEnd": "10.76.0.30", "gateway": "10.76.0.254"},
    {"subnet": "10.78.0.0/30"},
    {"subnet": "fd77::/64"},
    {"subnet": "fd78::/120", "rangeStart": "fd78::7", "gateway": "fd78::1"},
    rarely=[
        {"subnet": "10.78.0.0/31"},
        {"subnet": "10.78.0.0/30", "rangeEnd": "10.78.0.1"},
        {"subnet": "10.77.0.0/24", "rangeStart": "10.79.0.1"},
    ],
)
RANGE_SETS = st.lists(st.lists(RANGE, min_size=1, max_size=1), min_size=1, max_size=2, unique_by=str)
HOST_LOCAL = st.fixed_dictionaries({"type": st.just("host-local"), "ranges": RANGE_SETS}, optional={"routes": ROUTES})
TAKEN = st.sets(mostly("10.77.0.2", "10.76.0.20", "fd77::2", "fd78::7", rarely=["10.78.0.2"]), max_size=2)
REQUESTED = options(
    ips=st.lists(mostly("10.77.0.9", "10.77.0.9/24", rarely=["10.77.0.2", "fd77::9"]), max_size=1),
    mac=MACS,
)

BRIDGES = options(
    bridge=mostly("br0", "brx", "bry", rarely=["par0"]),
    isGateway=SWITCH,
    isDefaultGateway=SWITCH,
    forceAddress=SWITCH,
    hairpinMode=SWITCH,
    promiscMode=mostly(False, rarely=[True]),
    ipMasq=SWITCH,
    macspoofchk=SWITCH,
    mtu=MTUS,
)
MACVLANS = options(
    master=mostly("par0", "card0", rarely=["brx", "lo", "eth9"]),
    mode=mostly("bridge", "private", "vepa", "passthru", rarely=["source"]),
    mtu=MTUS,
    mac=MACS,
)
IPVLANS = options(master=mostly("par0", rarely=["eth9"]), mode=mostly("l2", "l3", "l3s", rarely=["l4"]), mtu=MTUS)
VLANS = st.fixed_dictionaries(
    {"master": mostly("par0", rarely=["eth9"]), "vlanId": mostly(7, 4094, rarely=[0, 4095])},
    optional={"mtu": MTUS},
)
CARDS = st.fixed_dictionaries({"device": mostly("card0", rarely=["eth9"])})


def network(kind: str, own: st.SearchStrategy[Any], *, needs_ipam: bool = False) -> st.SearchStrategy[dict[str, Any]]:
    stated = STATIC.filter(lambda each: kind != "ptp" or LONE not in str(each))
    ipam = st.one_of(stated, HOST_LOCAL)
    return st.builds(
        lambda version, mine, assigned, asked, dns: (
            {"cniVersion": version, "name": "net", "type": kind}
            | {key: value for key, value in mine.items() if key != "ipMasq" or not _several(assigned)}
            | ({"ipam": assigned} if assigned else {})
            | ({"runtimeConfig": asked, "capabilities": {"ips": True, "mac": True}} if asked else {})
            | ({"dns": dns} if dns else {})
        ),
        mostly("0.3.1", "0.4.0", "1.0.0", rarely=["0.2.0"]),
        own,
        ipam if needs_ipam else st.one_of(ipam, ipam, ipam, st.none()),
        st.one_of(st.none(), st.none(), st.none(), REQUESTED),
        st.one_of(st.none(), DNS),
    )


def _several(ipam: Any) -> bool:
    """Return whether there may be several addresses of a family: the reference fails to end their masquerading."""
    stated = [each["address"] for each in (ipam or {}).get("addresses", ())]
    stated += [each["subnet"] for ranges in (ipam or {}).get("ranges", ()) for each in ranges]
    return len({":" in each for each in stated}) < len(stated)


KINDS = {
    "bridge": (network("bridge", BRIDGES), 12),
    "macvlan": (network("macvlan", MACVLANS), 6),
    "ptp": (network("ptp", options(ipMasq=SWITCH, mtu=MTUS), needs_ipam=True), 6),
    "host-device": (network("host-device", CARDS), 3),
    "ipvlan": (network("ipvlan", IPVLANS), 4),
    "vlan": (network("vlan", VLANS, needs_ipam=True), 4),
}
"""How to make a network of a kind, and how many a normal run makes."""


def lived(config: dict[str, Any], taken: set[str], verb: Callable[[str, dict[str, Any]], Verb]) -> Seen:
    """Return what is seen of an attachment to *config* on a node where others have the addresses *taken*."""
    with node(), container() as netns, tempfile.TemporaryDirectory() as folder:
        for words in FURNITURE:
            subprocess.run(["ip", *words.split()], check=True)
        kept = Path(folder, "net")
        if config.get("ipam", {}).get("type") == "host-local":
            config = config | {"ipam": config["ipam"] | {"dataDir": folder}}
            kept.mkdir()
            for each in taken:
                (kept / each).write_text("other\r\neth0")
        run = verb(netns, config)
        code, result = run("ADD", None)
        seen = Seen(code=code)
        if code:
            undo, said = run("DEL", None)
            note(f"{verb.__name__}: {result}, {said}")
            # What the reference plugins leave of a failed ADD is theirs; natively nothing is left.
            held = {name for name in contents(kept) if not name.startswith("last_reserved")}
            assert verb is by_reference or (undo, names(netns), held) == (0, {"lo"}, taken if kept.exists() else set())
            return seen
        seen.attached = view(netns, {"dns": {}} | result), contents(kept)
        # Some of the reference's fail to recognize what they have made themselves.
        assert verb is by_reference or config["cniVersion"] not in WITH_CHECK or run("CHECK", result) == (0, None)
        assert run("DEL", result) == (0, None)
        seen.detached, seen.files = view(netns), contents(kept)
        return seen


def contents(folder: Path) -> dict[str, str]:
    files = folder.iterdir() if folder.exists() else ()
    return {each.name: each.read_text() for each in files if each.name != "lock"}


def by_reference(netns: str, config: dict[str, Any]) -> Verb:
    def run(command: str, previous: Any) -> tuple[int, Any]:
        stated = config | ({"prevResult": previous} if previous else {})
        ran = executed(config["type"], command, stated, netns, "net1")
        said: Any = json.loads(ran.stdout) if ran.stdout else None
        return (said["code"] if ran.returncode else 0), said

    return run


def natively(netns: str, config: dict[str, Any]) -> Verb:
    async def working(command: str, stated: dict[str, Any]) -> tuple[int, Any]:
        env = {"CNI_CONTAINERID": "sandbox", "CNI_NETNS": netns, "CNI_IFNAME": "net1", "CNI_ARGS": ""}
        with contextlib.closing(NativePool()) as processes:
            runner = NativeRunner(PluginExecutor(marker=f"test-{os.urandom(8).hex()}"), AUTO, processes)
            ran, stdout = await runner.run(
                config["type"],
                command=command,
                env=env,
                stdin=json.dumps(stated).encode(),
                plugin_folders=(),
                timeout=30,
            )
        said: Any = json.loads(stdout) if stdout else None
        return (said["code"] if ran.exit_code else 0), said

    def run(command: str, previous: Any) -> tuple[int, Any]:
        return asyncio.run(working(command, config | ({"prevResult": previous} if previous else {})))

    return run


def differing(mine: Seen, theirs: Seen) -> list[str]:
    found = differences(msgspec.to_builtins(mine), msgspec.to_builtins(theirs))
    # A card's mark goes with the DEL, as in later versions of the reference plugin.
    return [line for line in found if not (line.startswith("/detached/node/links/") and "/ifalias" in line)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_network_is_the_same_natively_as_by_the_reference(kind: str) -> None:
    of, share = KINDS[kind]
    if kind in {"ipvlan", "vlan"} and not kernel_has(kind):
        pytest.skip(f"the kernel has no {MODULES.get(kind, kind)}")

    @settings(generated, max_examples=EXAMPLES or share)
    @given(of, TAKEN)
    def compare(config: dict[str, Any], taken: set[str]) -> None:
        plugin = interface_plugin(config["type"])
        assert plugin is not None
        assert plugin.unsupported(config) == ""
        assert differing(lived(config, taken, natively), lived(config, taken, by_reference)) == []

    compare()
