"""An interface that a program in the pod renames is the program's: nothing takes its old name.

KubeVirt renames interfaces to make them ports of a virtual machine, and puts others in their place
(https://github.com/kubevirt/kubevirt/blob/main/docs/network/network-binding-mechanisms.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from events.schema import DriftObserved, DriftRepaired
from tests.support.node.kernel import ip
from tests.support.node.node import PARENT, MakeNode, Node
from tests.support.node.reconciler_process import reconciler
from tests.support.node.runtime import PodSandbox
from tests.support.waiting import eventually

NETWORKS: dict[str, dict[str, Any]] = {
    "bridge": {"cniVersion": "1.0.0", "type": "bridge", "bridge": "plumb0"},
    "macvlan": {"cniVersion": "1.0.0", "type": "macvlan", "master": PARENT},
}
NATIVE = ["auto", "never"]


@pytest.fixture(params=NATIVE, ids=["native", "executed"])
def repaired(request: pytest.FixtureRequest, make_node: MakeNode) -> Iterator[Node]:
    """A node with a worker and a reconciler that repairs drift."""
    node = make_node(native=request.param)
    node.start()
    with reconciler(node):
        yield node


def rename(pod: PodSandbox, *commands: str) -> None:
    """Make net1 the port of a bridge in the pod, under another name and with another MAC address."""
    for command in (
        "set net1 down",
        "set net1 name net1-nic",
        "add k6t-net1 type bridge",
        "set net1-nic address 02:00:00:00:00:99 master k6t-net1 up",
        *commands,
    ):
        ip("-n", pod.namespace, "link", *command.split())


def seen_after_another_drift(node: Node, pod: PodSandbox) -> set[str]:
    """Cause and await the repair of eth0; return the names of all interfaces that had drift until then."""
    ip("-n", pod.namespace, "link", "set", "eth0", "down")

    def recorded(kind: type[Any]) -> list[Any]:
        return [event.data for event in node.events_of(pod) if isinstance(event.data, kind)]

    eventually(lambda: recorded(DriftRepaired), "eth0 is repaired")
    return {drift.ifname for observed in recorded(DriftObserved) for drift in observed.drifts}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("commands", [(), ("add net1 type bridge",)], ids=["name is free", "name is taken"])
def test_renamed_interface_is_not_attached_again(repaired: Node, kind: str, commands: tuple[str, ...]) -> None:
    repaired.nad("vm", NETWORKS[kind])
    pod = repaired.pod("launcher", "vm")
    assert pod.add().exit_code == 0
    rename(pod, *commands)
    assert seen_after_another_drift(repaired, pod) == {"eth0"}
    assert set(pod.links()) == {"eth0", "net1-nic", "k6t-net1"} | ({"net1"} if commands else set())
    pod.end()
