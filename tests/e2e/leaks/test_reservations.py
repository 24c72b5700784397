"""An address that a live sandbox holds is never given again, whatever happens to host-local's files."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from events.schema import Drift, DriftKind, DriftObserved, DriftRepaired
from tests.e2e.leaks.test_leaks import forge_boot
from tests.support.node.node import MakeNode, Node, prove_clean
from tests.support.node.runtime import PodSandbox
from tests.support.waiting import eventually

Lose = Callable[[Node], None]


@pytest.fixture(scope="module", params=["auto", "never"], ids=["native", "executed"])
def plain_node(request: pytest.FixtureRequest, shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The node behind ``plain``."""
    with Node(tmp_path_factory.mktemp("n"), shim, native=request.param).entered() as node:
        node.start()
        yield node


@pytest.fixture
def plain(plain_node: Node) -> Iterator[Node]:
    """A node whose worker runs all plugins natively, or executes them, without reconciler."""
    yield plain_node
    prove_clean(plain_node)


def remove_folder(node: Node) -> None:
    shutil.rmtree(node.addresses)


def remove_files(node: Node) -> None:
    for path in node.addresses.glob("*/*"):
        path.unlink()


def remove_reservations(node: Node) -> None:
    for path in node.reserved():
        path.unlink()


def replace_folder(node: Node) -> None:
    node.addresses.rename(node.addresses.with_name("moved"))
    node.addresses.mkdir()


@pytest.mark.parametrize("lose", [remove_folder, remove_files, remove_reservations, replace_folder])
def test_address_is_not_given_again_after_its_file_is_lost(plain: Node, lose: Lose) -> None:
    one, two = plain.samplepod("one"), plain.samplepod("two")
    assert one.add().exit_code == 0
    before = files(plain)
    lose(plain)
    assert two.add().exit_code == 0
    assert not addresses(one) & addresses(two)
    assert before.items() <= files(plain).items()
    assert {(drift.kind, f"{drift.expected}/16") for drift in repaired(plain, one)} == {
        (DriftKind.RESERVATION_MISSING, address) for address in addresses(one)
    }
    assert not plain.state().sandboxes[one.key].drifts
    assert not repaired(plain, two)


def test_del_after_a_wipe_leaves_nothing(plain: Node) -> None:
    one, two = plain.samplepod("one"), plain.samplepod("two")
    assert one.add().exit_code == 0
    remove_folder(plain)
    assert one.delete().exit_code == 0
    assert two.add().exit_code == 0
    assert not repaired(plain, one)
    assert plain.events_of(one)[-1].type == "DetachCompleted"


def test_locked_folder_of_one_network_holds_up_no_del_of_another(plain: Node) -> None:
    one, other = plain.samplepod("one"), plain.pod("other")
    assert [one.add().exit_code, other.add().exit_code] == [0, 0]
    address = next(path for path in plain.reserved() if path.name.startswith("192.168."))
    with (address.parent / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        address.unlink()
        adds = [plain.samplepod(name).call("ADD") for name in ("two", "three")]
        eventually(lambda: str(address.parent) in plain.open_files(), "the worker waits for the lock")
        assert other.delete().exit_code == 0
        assert all(add.running() for add in adds)
    for add in adds:
        assert add.answer().exit_code == 0
    assert address.exists()


def test_worker_restarted_after_a_wipe_restores_it(plain: Node) -> None:
    one, two = plain.samplepod("one"), plain.samplepod("two")
    assert one.add().exit_code == 0
    plain.terminate()
    assert plain.ended() == 0
    remove_folder(plain)
    plain.start()
    assert two.add().exit_code == 0
    assert not addresses(one) & addresses(two)


def test_addresses_differ_although_the_folder_is_wiped_again_and_again(plain: Node) -> None:
    """An ADD may fail meanwhile, and is repeated behind a DEL."""
    old = [plain.samplepod(f"old-{number}") for number in range(3)]
    assert [pod.add().exit_code for pod in old] == [0, 0, 0]
    new = [plain.samplepod(f"new-{number}") for number in range(20)]
    calls = [pod.call("ADD") for pod in new]
    while any(call.running() for call in calls):
        shutil.rmtree(plain.addresses, ignore_errors=True)
    answers = [call.answer() for call in calls]
    failed = [pod for pod, answer in zip(new, answers, strict=True) if answer.exit_code]
    attached = [pod for pod in (*old, *new) if pod not in failed]
    given = [address for pod in attached for address in addresses(pod)]
    assert len(given) == len(set(given)) == 2 * len(attached)
    assert not {pod.delete().exit_code or pod.add().exit_code for pod in failed} - {0}
    assert plain.samplepod("last").add().exit_code == 0
    given = [address for pod in plain.sandboxes for address in addresses(pod)]
    assert len(given) == len(set(given)) == 2 * len(plain.sandboxes)
    assert {name.rpartition("/")[2] for name in files(plain)} == {each.partition("/")[0] for each in given}


def test_ipv6_and_own_folder_and_shared_name(plain: Node, tmp_path: Path) -> None:
    """Two networks of one name share a folder; each pod has an address of both families of each."""
    folder = tmp_path / "own"
    for name, ranges in {"a": ("10.7.0.0/24", "fd07::/64"), "b": ("10.8.0.0/24", "fd08::/64")}.items():
        ipam = {"type": "host-local", "dataDir": str(folder), "ranges": [[{"subnet": each}] for each in ranges]}
        plain.nad(name, plain.macvlan("1.0.0", name="shared", ipam=ipam))
    one, two = plain.pod("one", "a,b"), plain.pod("two", "a,b")
    assert one.add().exit_code == 0
    shutil.rmtree(folder)
    assert two.add().exit_code == 0
    assert not addresses(one) & addresses(two)
    kept = {path.name for path in (folder / "shared").iterdir()}
    assert {each.partition("/")[0] for pod in (one, two) for each in addresses(pod, "net1", "net2")} <= kept
    assert {one.delete().exit_code, two.delete().exit_code} == {0}
    assert not [path for path in (folder / "shared").iterdir() if ":" in path.name or path.name.startswith("10.")]


def test_unwritable_folder_fails_the_add_and_names_the_holder(make_node: MakeNode) -> None:
    node = make_node()
    node.start()
    one, two = node.samplepod("one"), node.samplepod("two")
    assert one.add().exit_code == 0
    moved = node.addresses.with_name("moved")
    node.addresses.rename(moved)
    node.addresses.touch()
    answer = two.add()
    assert answer.code == 11
    assert "pod default/two" in answer.msg
    assert "pod default/one" in answer.msg
    assert "mend the file system" in answer.msg
    node.addresses.unlink()
    moved.rename(node.addresses)


def test_address_that_was_given_again_meanwhile_is_refused(plain: Node) -> None:
    gate = plain.gate("macvlan")
    plain.nad("open", plain.macvlan(name="fresh"))  # its first address is that of the first pod
    plain.nad("gated", {**plain.macvlan(name="fresh"), "type": gate.type})
    one = plain.pod("one", "open")
    assert one.add().exit_code == 0
    two = plain.pod("two", "gated")
    call = two.call("ADD")
    gate.reached()
    remove_folder(plain)
    gate.open()
    answer = call.answer()
    assert answer.code == 11
    (address,) = addresses(one, "net1")
    assert (
        f"pod default/two: host-local gave net1 of default/gated the address {address.removesuffix('/16')}"
        in answer.msg
    )
    assert f"which pod default/one (container {one.container_id[:12]}) holds" in answer.msg
    assert not two.links()
    assert two.delete().exit_code == two.add().exit_code == 0
    assert not addresses(one) & addresses(two)


def test_sandbox_of_an_earlier_boot_holds_no_address(make_node: MakeNode) -> None:
    node = make_node()
    node.start()
    one, two = node.samplepod("one"), node.samplepod("two")
    assert one.add().exit_code == 0
    given = addresses(one)
    node.kill()
    forge_boot(node)
    one.end()
    remove_folder(node)  # some nodes keep it in memory
    node.start()
    assert two.add().exit_code == 0
    assert addresses(two) == given


def files(node: Node) -> dict[str, bytes]:
    """Return the reservations: the content of each file."""
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in node.reserved()}


def addresses(pod: PodSandbox, *ifnames: str) -> set[str]:
    return {
        address for name, link in pod.links().items() if not ifnames or name in ifnames for address in link.addresses
    }


def repaired(node: Node, pod: PodSandbox) -> list[Drift]:
    """Return the drift of *pod* that was observed and then repaired."""
    datas = [event.data for event in node.events_of(pod)]
    observed = [drift for data in datas if isinstance(data, DriftObserved) for drift in data.drifts]
    done = [drift for data in datas if isinstance(data, DriftRepaired) for drift in data.drifts]
    assert done == observed
    return done
