"""A reservation of a live sandbox that was removed, torn or given to another is reported and restored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from events.schema import DriftKind, DriftRepairFailed, ErrorClass, Failure
from tests.e2e.leaks.test_reservations import addresses, files, remove_folder, repaired
from tests.support.node.kernel import ip
from tests.support.node.node import MakeNode, Node, gated_pod
from tests.support.node.reconciler_process import reconciler
from tests.support.node.runtime import PodSandbox
from tests.support.run.fork_server import plumbline
from tests.support.waiting import eventually


@pytest.fixture(scope="module", params=["auto", "never"], ids=["native", "executed"])
def held_node(request: pytest.FixtureRequest, shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The node of the fixture ``held``: worker and reconciler repair it."""
    with Node(tmp_path_factory.mktemp("n"), shim, native=request.param).entered() as node:
        node.start()
        with reconciler(node):
            yield node


def remove(path: Path) -> None:
    path.unlink()


def tear(path: Path) -> None:
    path.write_text("")


def give_to_an_unknown_container(path: Path) -> None:
    path.write_bytes(b"a" * 64 + b"\r\neth0")


DAMAGES: dict[Callable[[Path], None], tuple[DriftKind, str]] = {
    remove: (DriftKind.RESERVATION_MISSING, ""),
    tear: (DriftKind.RESERVATION_MISSING, "a file without an owner"),
    give_to_an_unknown_container: (DriftKind.RESERVATION_FOREIGN, "aaaaaaaaaaaa eth0"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_sees_a_damaged_reservation_and_it_is_repaired(held: Node, damage: Callable[[Path], None]) -> None:
    pod = held.samplepod()
    assert pod.add().exit_code == 0
    before = files(held)
    for path in held.reserved():
        damage(path)
    assert pod.check().exit_code != 0
    verify(held)
    eventually(lambda: repaired(held, pod), "the reservations are repaired")
    assert files(held) == before
    kind, found = DAMAGES[damage]
    assert {(drift.kind, drift.found, f"{drift.expected}/16") for drift in repaired(held, pod)} == {
        (kind, found, address) for address in addresses(pod)
    }
    assert pod.check().exit_code == 0
    assert pod.delete().exit_code == 0


def test_reservation_of_a_pod_that_may_hold_it_is_not_taken(held: Node) -> None:
    """Before its ADD is done, the ledger does not know which address the other pod holds."""
    pod = held.samplepod()
    assert pod.add().exit_code == 0
    other, gate = gated_pod(held)
    call = other.call("ADD")
    gate.reached()
    path = held.addresses / "default" / addresses(pod, "eth0").pop().partition("/")[0]
    before, of_other = path.read_bytes(), f"{other.container_id}\r\neth0".encode()
    path.write_bytes(of_other)
    ip("-n", pod.namespace, "link", "del", "eth0")
    failure = eventually(lambda: failures(held, pod), "it is said that it can't be repaired")[0]
    assert failure.error_class is ErrorClass.NOT_REPAIRABLE
    assert "pod default/samplepod" in failure.message
    assert "pod default/gated has the same address: delete one of the two pods" in failure.message
    assert "eth0" not in pod.links()
    gate.open()
    assert call.answer().exit_code == 0
    verify(held)
    assert path.read_bytes() == of_other  # it was given up until the drift changes
    remove(path)
    verify(held)
    eventually(lambda: "eth0" in pod.links() and path.exists() and path.read_bytes() == before, "all is as before")
    assert pod.delete().exit_code == 0


def test_lost_reservation_is_restored_before_its_interface(held: Node) -> None:
    pod = held.samplepod()
    assert pod.add().exit_code == 0
    before, links = files(held), pod.links()
    remove_folder(held)
    ip("-n", pod.namespace, "link", "del", "net1")
    eventually(lambda: pod.links().keys() == links.keys() and files(held) == before, "all is as before")
    eventually(lambda: not held.state().sandboxes[pod.key].drifts, "the ledger knows")
    assert pod.delete().exit_code == 0


def test_verify_names_the_lost_reservation_of_a_network_that_is_not_repaired(make_node: MakeNode) -> None:
    node = make_node()
    settings = json.loads(node.config.read_text())
    node.config.write_text(json.dumps({**settings, "drift": {"policy": "observe"}}))
    node.start()
    with reconciler(node):
        pod = node.samplepod()
        assert pod.add().exit_code == 0
        remove_folder(node)
        messages = [each["message"] for each in verify(node)["differences"] if each["kind"] == "drift"]
        for ifname, network in (("eth0", "default"), ("net1", "default/macvlan-conf")):
            address = addresses(pod, ifname).pop().partition("/")[0]
            told = f"interface {ifname} of network {network}: reservation missing (recorded {address})"
            assert any(f"pod default/samplepod on node {node.name}: {told}" in each for each in messages), messages


def verify(node: Node) -> dict[str, Any]:
    """Compare the node with the ledger."""
    done = plumbline(node.config, "verify", "--json")
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def failures(node: Node, pod: PodSandbox) -> list[Failure]:
    datas = [event.data for event in node.events_of(pod)]
    return [data.failure for data in datas if isinstance(data, DriftRepairFailed)]
