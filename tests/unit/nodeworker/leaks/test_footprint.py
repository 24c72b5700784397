"""The folders and links that the footprint learns from events."""

from __future__ import annotations

import json

import pytest

from events.schema import (
    NO_CAUSE,
    AttachCompleted,
    ContainerId,
    Data,
    Event,
    EventId,
    IfName,
    InterfaceAttached,
    NetworkName,
    NodeName,
    PluginRun,
    RequestId,
)
from nodeworker.leaks.evidence.footprint import Footprint, NodeEnd

BOX = ContainerId("a" * 64)
RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "plumb0", "mac": "02:00:00:00:00:01"},
        {"name": "veth1", "mac": "02:00:00:00:00:0A"},
        {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/a"},
    ],
}
EFFECT = InterfaceAttached(
    network=NetworkName("default"),
    ifname=IfName("eth0"),
    result=json.dumps(RESULT),
    seconds=0.01,
    runs=(PluginRun(type="bridge", command="ADD", seconds=0.01, exit_code=0),),
)
CARRIED = AttachCompleted(request=RequestId("r"), ifname=IfName("eth0"), result="{}", effects=(EFFECT,))


@pytest.mark.parametrize("data", [EFFECT, CARRIED], ids=["by itself", "carried"])
def test_node_ends_are_learned_from_every_event(data: Data) -> None:
    places = Footprint("")
    places.learn(_event(data))
    ends = places.ends(frozenset())
    assert set(ends) == {NodeEnd("plumb0", "02:00:00:00:00:01"), NodeEnd("veth1", "02:00:00:00:00:0a")}
    assert {held.holder for held in ends.values()} == {BOX}


def test_only_existing_links_are_learned_from_the_ledger() -> None:
    places = Footprint("")
    places.learn(_event(CARRIED), frozenset({"veth1"}))
    assert [end.name for end in places.ends(frozenset())] == ["veth1"]


def _event(data: Data) -> Event:
    return Event(
        id=EventId("e"),
        at="2026-02-03T04:05:06.000000000Z",
        node=NodeName("n"),
        boot_id="",
        epoch=1,
        sandbox=BOX,
        cause=NO_CAUSE,
        trace="",
        data=data,
    )
