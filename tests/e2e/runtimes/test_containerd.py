"""A container runtime of the field calls the entry point as it does for a kubelet: containerd, through its CRI."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
from grpclib.exceptions import GRPCError, StreamTerminatedError

from events.schema import DetachRequested, LeakKind, LeakObserved, LeakReclaimed
from nodeworker.leaks.evidence import cri
from nodeworker.leaks.evidence.container_runtime import RuntimeUnknownError
from tests.support.node.containerd import Containerd, CriSandbox, missing
from tests.support.node.gate import Gate
from tests.support.node.node import Node, addresses_of, prove_clean
from tests.support.node.reconciler_process import reconciler
from tests.support.repository import REPOSITORY
from tests.support.waiting import eventually

T = TypeVar("T")

_PATIENCE = 30.0
"""Seconds for what takes two looks of the worker, some seconds apart."""


class Rig(NamedTuple):
    """A node whose pods are run by containerd."""

    node: Node
    containerd: Containerd

    def run(self, pod: str, networks: str = "macvlan-conf") -> CriSandbox:
        """Return the sandbox of *pod*, which selects *networks*. Raises GRPCError."""
        self.node.define(pod, networks)
        return self.containerd.run(pod)

    def addresses(self, sandbox: CriSandbox) -> dict[str, set[str]]:
        """Return the addresses of its interfaces, as the ledger has them."""
        recorded = self.node.state().sandboxes[sandbox.key]
        return {each.plan.ifname: addresses_of(json.loads(each.result)) for each in recorded.attachments}

    def leak_events(self, lost: CriSandbox, kind: type[T]) -> list[T]:
        """Return the events of *kind* about the leak of *lost*."""
        datas = [event.data for event in self.node.events_of(lost)]
        return [data for data in datas if isinstance(data, kind)]

    def leaks_are_looked_for(self) -> None:
        """Wait until a certain leak was seen twice and freed: by then, every other leak was seen too."""
        torn = self.node.addresses / "default" / "10.87.255.255"
        torn.touch()
        eventually(lambda: not torn.exists(), "leaks are looked for", _PATIENCE)


@pytest.fixture(scope="module")
def whole(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The node behind ``rig``: one for all, with a reconciler, onto which Plumbline is installed as people do it."""
    if reason := missing():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        folder = tmp_path_factory.mktemp("containerd")
        places = {"criSocket": str(folder / "cri.sock"), "resultsDir": str(folder / "cni" / "results")}
        node = stack.enter_context(Node(tmp_path_factory.mktemp("n"), shim, leaks={"interval": 1, **places}).entered())
        containerd = stack.enter_context(Containerd(folder, node).present())
        node.start()
        stack.enter_context(reconciler(node))
        node.nad("macvlan-conf", node.macvlan())
        plugins = [node.bridge(), {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False}]
        conflist = {"cniVersion": "1.0.0", "name": "default", "plugins": plugins}
        (containerd.conf / "10-default.conflist").write_text(json.dumps(conflist))
        install(node, containerd)
        eventually(lambda: containerd.calls("plumbline"), "containerd goes by the new configuration", _PATIENCE)
        yield Rig(node, containerd)


def install(node: Node, containerd: Containerd) -> None:
    folders = ["--cni-bin-dir", str(containerd.bin), "--cni-conf-dir", str(containerd.conf)]
    command = [sys.executable, "-m", "nodeworker.host.install", "--config", str(node.config), "install", *folders]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=60)
    assert not done.returncode, done.stderr


@pytest.fixture
def rig(whole: Rig) -> Iterator[Rig]:
    """The node, for one test after another: nothing may be left by any."""
    yield whole
    print(whole.containerd.log.read_text())  # shown where a test fails
    assert not whole.containerd.listed()
    prove_clean(whole.node)
    assert not list(whole.containerd.namespaces.iterdir())


# --- a sandbox comes and goes ----------------------------------------------------------------------------------------


def test_sandbox_gets_its_networks_and_releases_them(rig: Rig) -> None:
    sandbox = rig.run("samplepod")
    assert Path(sandbox.netns).parent == rig.containerd.namespaces
    rig.node.assert_attached(sandbox)
    addresses = rig.addresses(sandbox)
    assert set(addresses) == {"eth0", "net1"}
    assert {f"{rig.containerd.ip(sandbox)}/16"} == addresses["eth0"]

    rig.containerd.halt(sandbox)
    assert not sandbox.has_namespace
    rig.node.assert_detached(sandbox)
    assert not rig.node.reserved()
    rig.containerd.remove(sandbox)


def test_host_port_leads_to_the_pod_until_its_del(rig: Rig) -> None:
    """What containerd passes beside the configuration gets to the plugin that declares it."""
    rig.node.define("samplepod")
    sandbox = rig.containerd.run("samplepod", port_mappings=[{"container_port": 80, "host_port": 8080}])
    assert f"--to-destination {rig.containerd.ip(sandbox)}:80" in nat_rules()
    rig.containerd.remove(sandbox)
    assert "--to-destination" not in nat_rules()


def nat_rules() -> str:
    return subprocess.run(["iptables", "-t", "nat", "-S"], check=True, capture_output=True, text=True).stdout


def test_containerd_reports_why_a_sandbox_is_not_attached(rig: Rig) -> None:
    with pytest.raises(GRPCError, match="pod default/unlucky: network default/not-there does not exist"):
        rig.run("unlucky", "macvlan-conf,not-there")


def test_refused_del_is_not_taken_for_done(rig: Rig) -> None:
    """containerd forgets a sandbox when the complaint about its DEL holds certain words."""
    uplink = rig.node.bin / "uplink"
    rig.node.plugin(
        "stubborn",
        f"cat > /dev/null; [ $CNI_COMMAND != DEL ] || [ -e {uplink} ] || "
        '{ echo \'{"code": 99, "msg": "uplink not found"}\'; exit 1; }\n'
        '[ $CNI_COMMAND != ADD ] || echo \'{"cniVersion": "1.0.0"}\'',
    )
    rig.node.nad("stubborn", {"cniVersion": "1.0.0", "type": "stubborn"})
    sandbox = rig.run("held", "stubborn")
    with pytest.raises(GRPCError, match=r"default/stubborn.*uplink missing"):
        rig.containerd.halt(sandbox)
    assert rig.containerd.listed() == {sandbox.container_id}
    uplink.touch()
    rig.containerd.remove(sandbox)
    rig.node.assert_detached(sandbox)


def gated(rig: Rig) -> Gate:
    """Define the pod "gated", and return the gate that the address of its second interface waits at."""
    gate = rig.node.gate("host-local")
    rig.node.nad("gated", rig.node.macvlan(ipam=rig.node.host_local("192.168.0.0/16", gate.type)))
    rig.node.define("gated", "gated")
    return gate


def test_kubelet_timeout_leaves_nothing(rig: Rig) -> None:
    """Its patience ends in the middle of an ADD: containerd kills the entry point, and asks for a DEL."""
    gate, before = gated(rig), detaches(rig.node, "gated")
    call = rig.containerd.start_run("gated")
    gate.reached()
    call.give_up()
    eventually(lambda: detaches(rig.node, "gated") > before, "the DEL has come")
    gate.open()
    eventually(lambda: not list(rig.containerd.namespaces.iterdir()), "containerd has done the rest", _PATIENCE)
    assert not rig.node.state().sandboxes


def detaches(node: Node, pod: str) -> int:
    """Return how many DELs of *pod* were asked for until now."""
    datas = (stored.event.data for stored in node.events())
    return sum(isinstance(data, DetachRequested) and data.pod.name == pod for data in datas)


# --- the worker dies -------------------------------------------------------------------------------------------------


def test_successor_of_a_killed_worker_finishes_the_sandbox(rig: Rig) -> None:
    gate = gated(rig)
    call = rig.containerd.start_run("gated")
    gate.reached()
    rig.node.kill()
    gate.open()
    rig.node.start()
    sandbox = rig.containerd.sandbox("gated", call.answer().pod_sandbox_id)
    rig.node.assert_attached(sandbox)
    rig.containerd.remove(sandbox)


def test_late_successor_finds_nothing_left(rig: Rig) -> None:
    rig.containerd.restart(PLUMBLINE_DEADLINE="5")
    gate = gated(rig)
    call = rig.containerd.start_run("gated")
    gate.reached()
    rig.node.kill()
    with pytest.raises(GRPCError, match="try again"):
        call.answer()
    gate.open()
    rig.containerd.restart()
    rig.node.start()
    eventually(lambda: not rig.node.state().sandboxes, "the sandbox is detached", _PATIENCE)


def test_sandbox_is_removed_while_no_worker_runs(rig: Rig) -> None:
    sandbox = rig.run("samplepod")
    rig.node.kill()
    rig.containerd.remove(sandbox)
    rig.node.start()
    eventually(lambda: not rig.node.state().sandboxes, "its DEL is done", _PATIENCE)


# --- containerd dies -------------------------------------------------------------------------------------------------


def test_killed_containerd_loses_no_sandbox(rig: Rig) -> None:
    first, second = rig.run("first"), rig.run("second")
    ips = [rig.containerd.ip(sandbox) for sandbox in (first, second)]
    rig.containerd.kill()
    rig.containerd.start(wait=False)
    assert eventually(lambda: present(rig.containerd), "it lists its sandboxes") >= {
        first.container_id,
        second.container_id,
    }, "it does not say so before it knows all"
    assert [rig.containerd.ip(sandbox) for sandbox in (first, second)] == ips
    for sandbox in (first, second):
        rig.node.assert_attached(sandbox)
        rig.containerd.remove(sandbox)
        rig.node.assert_detached(sandbox)


def present(containerd: Containerd) -> frozenset[str]:
    """Return the sandboxes that the worker believes containerd to know; none without an answer."""
    try:
        return asyncio.run(cri.inventory(str(containerd.socket))).present
    except RuntimeUnknownError:
        return frozenset()


def test_containerd_killed_in_an_add_removes_everything_later(rig: Rig) -> None:
    gate = gated(rig)
    call = rig.containerd.start_run("gated")
    gate.reached()
    rig.containerd.kill()
    with pytest.raises(StreamTerminatedError):
        call.answer()
    rig.containerd.start()
    (container_id,) = rig.containerd.listed()
    gate.open()
    rig.containerd.remove_by_id(container_id)


def test_sandbox_without_its_namespace_is_removed(rig: Rig) -> None:
    """Its DEL comes without a namespace then."""
    sandbox = rig.run("samplepod")
    rig.containerd.kill()
    forsake(rig.containerd, sandbox)
    rig.containerd.start()
    rig.containerd.halt(sandbox)
    rig.node.assert_detached(sandbox)
    rig.containerd.remove(sandbox)


def forsake(containerd: Containerd, sandbox: CriSandbox) -> None:
    """Have *sandbox* end behind the back of containerd, namespace and all."""
    containerd.kill_processes(sandbox)
    subprocess.run(["umount", sandbox.netns], check=True)
    os.unlink(sandbox.netns)


def test_missed_del_is_reclaimed_once_containerd_forgets_the_sandbox(rig: Rig) -> None:
    lost, kept = rig.run("lost"), rig.run("kept")
    rig.containerd.stop()
    forsake(rig.containerd, lost)
    rig.leaks_are_looked_for()
    assert not rig.leak_events(lost, LeakObserved), "without an answer of the runtime, nothing is lost"

    rig.containerd.start()
    rig.leaks_are_looked_for()
    assert not rig.leak_events(lost, LeakObserved), "its DEL may still come"

    rig.containerd.forget(lost)
    (reclaimed,) = eventually(lambda: rig.leak_events(lost, LeakReclaimed), "it is reclaimed", _PATIENCE)
    assert reclaimed.leak.kind is LeakKind.SANDBOX_GONE
    assert f"the container runtime at {rig.containerd.socket} does not know it" in reclaimed.evidence
    rig.node.assert_detached(lost)
    rig.node.assert_attached(kept)

    for sandbox in (lost, kept):
        os.utime(rig.containerd.result(sandbox), (0, 0))
    eventually(lambda: not rig.containerd.result(lost).exists(), "the unused result is deleted", _PATIENCE)
    assert rig.containerd.result(kept).exists()
    rig.containerd.remove(kept)
