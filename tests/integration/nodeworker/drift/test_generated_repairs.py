"""Any damage to a pod's interface is repaired exactly, whichever plugin created it.

It runs as many examples as ``test_generated_like_reference``, on the same networks.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.fold import Attachment, AttachmentPhase, Sandbox, SandboxKey, SandboxPhase
from events.schema import ContainerId, IfName, NetworkName, NodeName, Phase, PlannedAttachment
from nodeworker.drift import differences as drift
from nodeworker.drift.differences import Snapshot
from nodeworker.drift.expected import ExpectedLink, expected_links
from nodeworker.drift.repair.in_place import repair_in_place
from nodeworker.drift.snapshot import take_snapshot
from tests.integration.nodeworker.plugins.native.test_generated_like_reference import (
    EXAMPLES,
    FURNITURE,
    KINDS,
    Verb,
    by_reference,
    generated,
    natively,
)
from tests.support.plugins.kernel_view import REFERENCE, container, differences, node, view
from tests.support.plugins.native_harness import ip

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not (REFERENCE / "bridge").exists(), reason="the reference plugins are not installed"),
]

Way = Callable[[str, dict[str, Any]], Verb]

WAYS: dict[str, Way] = {"native": natively, "executed": by_reference}
SHARES = {"bridge": 5, "macvlan": 3, "ptp": 4, "host-device": 2}
FOREIGN = ("addr add 172.31.0.9/24 dev net1", "addr add fd55::9/64 dev net1 nodad")
ON_NODE = ("{port} nomaster", "{port} down", "{bridge} down")
IN_CONTAINER = (
    "addr flush dev net1",
    "-4 addr flush dev net1",
    "-6 addr flush dev net1",
    "route flush dev net1",
    "-4 route flush dev net1",
    "-6 route flush dev net1",
    "link set net1 down",
    "link set net1 mtu 1300",
    "link set net1 address 02:00:00:00:00:98",
)
DAMAGES = st.lists(st.sampled_from((*FOREIGN, *ON_NODE, *IN_CONTAINER)), min_size=1, max_size=4)
STATIC = {"type": "static", "addresses": [{"address": "10.77.0.5/24"}, {"address": "fd77::5/64", "gateway": "fd77::1"}]}
CASES: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
    "a route by no gateway": (
        {"type": "macvlan", "master": "par0", "ipam": STATIC | {"routes": [{"dst": "10.91.0.0/16"}]}},
        ["-4 route flush dev net1"],
    ),
    "the source of a route": (
        {"type": "ptp", "ipam": {"type": "static", "addresses": STATIC["addresses"][1:]}},
        ["-6 addr flush dev net1"],
    ),
    "the ways of a port": (
        {"type": "bridge", "bridge": "br0", "hairpinMode": True, "ipam": STATIC},
        ["{port} nomaster"],
    ),
}


def recorded(config: dict[str, Any], result: Any, *, native: bool) -> tuple[ExpectedLink, ...]:
    """Return the expected interfaces after an ADD with *result*."""
    plan = PlannedAttachment(
        network=NetworkName("ns/net"),
        ifname=IfName("net1"),
        cni_name="net",
        cni_version=config["cniVersion"],
        plugins=(json.dumps(config),),
        native=(native,),
    )
    attachment = Attachment(plan=plan, phase=AttachmentPhase.ATTACHED, result=json.dumps(result))
    key = SandboxKey(ContainerId("sandbox"), IfName("eth0"))
    box = Sandbox(key=key, node=NodeName("n"), phase=SandboxPhase.ATTACHED, attachments=(attachment,))
    return expected_links(box, lambda _: "repair")


def spoil(netns: str, config: dict[str, Any], damages: Sequence[str], seen: Snapshot) -> None:
    """Do *damages*, except those without an effect on such a network."""
    for words in damages:
        if words in ON_NODE:
            if config["type"] == "bridge":
                places = {"port": seen.ports["net1"].name, "bridge": config.get("bridge", "cni0")}
                ip(f"link set {words.format(**places)}")
        elif words not in FOREIGN or "ipam" in config:
            subprocess.run(["ip", "-n", netns.rpartition("/")[2], *words.split()], check=False, capture_output=True)


def picture(netns: str) -> dict[str, Any]:
    """Return the visible state, without what a link that was down resets, or the kernel adds late."""
    seen = view(netns)
    for side in ("container", "node"):
        del seen[side]["parameters"]
        seen[side]["routes"] = [each for each in seen[side]["routes"] if each["dst"] != "ff00::/8"]
    return seen


def comes_back(config: dict[str, Any], damages: Sequence[str], way: Way) -> None:
    with node(), container() as netns, tempfile.TemporaryDirectory() as folder:
        for words in (*FURNITURE, "link set brx up"):  # only the administrator may set a card's master up
            ip(words)
        if config.get("ipam", {}).get("type") == "host-local":
            config = config | {"ipam": config["ipam"] | {"dataDir": folder}}
        code, result = way(netns, config)("ADD", None)
        if code:
            return
        wanted = recorded(config, result, native=way is natively)
        whole, before = take_snapshot(netns, wanted, Phase.CHECK).snapshot, picture(netns)
        mtus = {name: link.mtu for name, link in whole.links.items()}
        assert drift.differences(wanted, whole, mtus) == ()
        spoil(netns, config, damages, whole)
        for _ in range(2):  # one missing part may hide another
            seen = take_snapshot(netns, wanted, Phase.CHECK).snapshot
            repair_in_place(netns, wanted, seen, drift.differences(wanted, seen, mtus))
        assert drift.differences(wanted, take_snapshot(netns, wanted, Phase.CHECK).snapshot, mtus) == ()
        assert differences(picture(netns), before) == []


@pytest.mark.parametrize("way", WAYS.values(), ids=[*WAYS])
@pytest.mark.parametrize("kind", SHARES)
def test_any_damage_is_repaired_to_the_recorded_state(kind: str, way: Way) -> None:
    @settings(generated, max_examples=EXAMPLES or SHARES[kind])
    @given(KINDS[kind][0], DAMAGES)
    def repair(config: dict[str, Any], damages: list[str]) -> None:
        comes_back(config, damages, way)

    repair()


@pytest.mark.parametrize("way", WAYS.values(), ids=[*WAYS])
@pytest.mark.parametrize(("config", "damages"), CASES.values(), ids=[*CASES])
def test_reattached_interface_equals_the_original(config: dict[str, Any], damages: Sequence[str], way: Way) -> None:
    comes_back({"cniVersion": "1.0.0", "name": "net"} | config, damages, way)
