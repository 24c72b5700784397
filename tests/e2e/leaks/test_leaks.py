"""Only leaks are freed, and in time: with worker, reconciler and a container runtime's socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from events.nats.ledger import JetStreamLedger
from events.schema import (
    ErrorClass,
    Event,
    LeakKind,
    LeakObserved,
    LeakReclaimed,
    LeakReclaimFailed,
    NodeName,
    ReclaimRequested,
)
from tests.support.node.cri_stand_in import Cri, cri
from tests.support.node.kernel import ip, links
from tests.support.node.node import BRIDGE, MakeNode, Node
from tests.support.node.reconciler_process import reconciler
from tests.support.node.runtime import PodSandbox
from tests.support.waiting import eventually

MISSED = 10.0
"""Seconds until the leaks of a missed DEL must be freed."""
REBOOTED = 15.0
"""Seconds from a worker's start until the leaks of a reboot must be freed."""
_LONG_AGO = 3600.0


class Leaky:
    """A node with a runtime, and a reconciler."""

    def __init__(self, node: Node, runtime: Cri) -> None:
        self.node = node
        self.runtime = runtime

    def attached(self, name: str = "samplepod") -> PodSandbox:
        """Return a sandbox of a pod with two interfaces, which the runtime has."""
        sandbox = self.node.samplepod(name)
        answer = sandbox.add()
        assert not answer.exit_code, answer
        return sandbox

    def abandon(self, *sandboxes: PodSandbox) -> None:
        """Remove *sandboxes* without a DEL; the runtime has forgotten them."""
        for sandbox in sandboxes:
            ip("netns", "del", sandbox.namespace)

    def datas(self, kind: type[Any]) -> list[Any]:
        return [stored.event.data for stored in self.node.events() if isinstance(stored.event.data, kind)]

    def observed(self, kind: LeakKind) -> list[LeakObserved]:
        return [data for data in self.datas(LeakObserved) if data.leak.kind is kind and not data.gone]

    def reclaimed(self, kind: LeakKind) -> list[LeakReclaimed]:
        return [data for data in self.datas(LeakReclaimed) if data.leak.kind is kind]

    def wait_reclaimed(self, kind: LeakKind, count: int = 1, seconds: float = MISSED) -> list[LeakReclaimed]:
        return eventually(
            lambda: found if len(found := self.reclaimed(kind)) >= count else [],
            f"{count} {kind} reclaimed; the ledger has {[e.event.type for e in self.node.events()][-12:]}",
            seconds,
        )

    def looked_at(self, times: int = 2) -> None:
        """Wait until the worker has scanned everything that often: a leak needs as many sightings."""
        marks = [self.mark() for _ in range(times)]
        for mark in marks:
            eventually(lambda mark=mark: not mark.exists(), "the worker looks")

    def mark(self) -> Path:
        """Create a certain leak, to see that scans continue."""
        path = (
            self.node.addresses / "default" / f"10.87.255.{len(list(self.node.addresses.glob('default/10.87.255.*')))}"
        )
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return path


@pytest.fixture
def make_leaky(make_node: MakeNode, tmp_path: Path) -> Iterator[Callable[..., Leaky]]:
    with contextlib.ExitStack() as stack:
        runtime = stack.enter_context(cri(tmp_path))

        def make(*, reconciles: bool = True, leaks: dict[str, Any] | None = None, **worker: Any) -> Leaky:
            settings = {"criSocket": str(runtime.socket), "interval": 3, "resultsDir": str(tmp_path / "results")}
            devices = {"infoFolder": str(tmp_path / "devinfo")}
            node = make_node(leaks={**settings, **(leaks or {})}, devices=devices, **worker)
            node.start()
            if reconciles:
                stack.enter_context(reconciler(node))
            return Leaky(node, runtime)

        yield make


@pytest.fixture
def leaky(make_leaky: Callable[..., Leaky]) -> Leaky:
    return make_leaky()


def append(node: Node, *events: Event) -> None:
    """Write *events* to the ledger, as if the node's worker had."""

    async def write() -> None:
        ledger = await JetStreamLedger.connect(node.server.address, name="e2e")
        try:
            for event in events:
                await ledger.append(event)
        finally:
            await ledger.close()

    asyncio.run(write())


# --- sandboxes -------------------------------------------------------------------------------------------------------


def test_missed_del_is_reclaimed_within_ten_seconds(leaky: Leaky) -> None:
    lost, kept = leaky.attached("lost"), leaky.attached("kept")
    leaky.runtime.knows(kept.container_id)
    started = time.monotonic()
    leaky.abandon(lost)
    (reclaimed,) = leaky.wait_reclaimed(LeakKind.SANDBOX_GONE)
    assert time.monotonic() - started < MISSED
    assert reclaimed.leak.holder == lost.container_id
    assert any("is gone" in sentence for sentence in reclaimed.evidence), reclaimed
    assert any("does not know it" in sentence for sentence in reclaimed.evidence), reclaimed
    leaky.node.assert_detached(lost)
    leaky.node.assert_attached(kept)
    sightings = [observed.sightings for observed in leaky.observed(LeakKind.SANDBOX_GONE)]
    assert sightings == [1, 2]
    assert leaky.node.event_types(lost)[-1] == "LeakReclaimed"


def test_sandbox_in_the_runtime_is_not_reclaimed(leaky: Leaky) -> None:
    lost = leaky.attached()
    leaky.runtime.knows(ended=(lost.container_id,))
    leaky.abandon(lost)
    leaky.looked_at()
    assert not leaky.observed(LeakKind.SANDBOX_GONE)
    leaky.runtime.knows(containers=(("c1", lost.container_id),))
    leaky.looked_at()
    assert not leaky.observed(LeakKind.SANDBOX_GONE)
    leaky.runtime.knows()
    leaky.wait_reclaimed(LeakKind.SANDBOX_GONE)
    leaky.node.assert_detached(lost)


def test_sandbox_with_a_namespace_is_not_reclaimed(leaky: Leaky) -> None:
    alive = leaky.attached()
    leaky.runtime.knows()
    leaky.looked_at()
    assert not leaky.observed(LeakKind.SANDBOX_GONE)
    leaky.node.assert_attached(alive)


def test_nothing_is_freed_while_the_runtime_does_not_answer(leaky: Leaky) -> None:
    lost = leaky.attached()
    leaky.runtime.stop()
    leaky.abandon(lost)
    leaky.looked_at()
    assert not leaky.observed(LeakKind.SANDBOX_GONE)
    assert lost.key in leaky.node.state().sandboxes
    leaky.runtime.socket.unlink()
    leaky.runtime.start()
    leaky.wait_reclaimed(LeakKind.SANDBOX_GONE)


def test_policy_observe_reports_and_frees_nothing(make_leaky: Callable[..., Leaky]) -> None:
    leaky = make_leaky(leaks={"policy": "observe"})
    lost = leaky.attached()
    leaky.abandon(lost)
    eventually(lambda: len(leaky.observed(LeakKind.SANDBOX_GONE)) == 2, "it is observed twice")
    time.sleep(2 * 3)  # two more scans: there is nothing new to record
    assert len(leaky.observed(LeakKind.SANDBOX_GONE)) == 2
    assert not leaky.datas(ReclaimRequested)
    assert lost.key in leaky.node.state().sandboxes


def test_leaks_of_a_reboot_are_freed_at_the_start(leaky: Leaky) -> None:
    """The ledger of a rebooted node is the one of this boot with another boot id."""
    node = leaky.node
    sandboxes = [leaky.attached(f"pod-{number}") for number in range(5)]
    node.kill()
    leaky.abandon(*sandboxes)
    eventually(lambda: set(links()) <= {BRIDGE, "uplink0", "uplink1"}, "the wires went with their namespaces")
    forge_boot(node)
    started = time.monotonic()
    node.start()
    leaky.wait_reclaimed(LeakKind.REBOOTED, 5, REBOOTED)
    assert time.monotonic() - started < REBOOTED
    node.assert_detached(*sandboxes)


def test_reboot_without_a_runtime_frees_leaks(make_leaky: Callable[..., Leaky]) -> None:
    leaky = make_leaky()
    node = leaky.node
    settings = json.loads(node.config.read_text())
    del settings["leaks"]["criSocket"]
    node.config.write_text(json.dumps(settings))
    if any(map(os.path.exists, ("/run/containerd/containerd.sock", "/run/crio/crio.sock"))):
        pytest.skip("the machine already has a container runtime with a CRI socket")
    node.restart()
    lost, unseen = leaky.attached("lost"), leaky.attached("unseen")
    leaky.abandon(unseen)
    leaky.looked_at()
    assert not leaky.observed(LeakKind.SANDBOX_GONE)
    node.kill()
    leaky.abandon(lost)
    forge_boot(node)
    node.start()
    leaky.wait_reclaimed(LeakKind.REBOOTED, 2, REBOOTED)
    node.assert_detached(lost, unseen)


def forge_boot(node: Node) -> None:
    """Change the boot id of all events in the ledger."""

    async def rewrite() -> None:
        ledger = await JetStreamLedger.connect(node.server.address, name="e2e")
        try:
            stored = [each async for each in ledger.read(f"plumbline.ev.{node.name}.>")]
            await ledger.purge(f"plumbline.ev.{node.name}.>", stored[-1].sequence)
            for _, event in stored:
                earlier = replace(event, id=type(event.id)(f"{event.id}-before"), boot_id="an-earlier-boot")
                earlier = replace(
                    earlier, cause=type(event.cause)(f"{event.cause}-before") if event.cause else event.cause
                )
                await ledger.append(earlier)
        finally:
            await ledger.close()

    asyncio.run(rewrite())


def test_refused_del_ends_once_the_namespace_is_gone(leaky: Leaky) -> None:
    node = leaky.node
    node.plugin("stubborn", 'if [ "$CNI_COMMAND" = DEL ]; then echo \'{"code": 99, "msg": "no"}\'; exit 1; fi; cat')
    stubborn = {"type": "stubborn"}
    # Its own DEL comes first, and fails: a chain ends there.
    node.nad("chained", {"cniVersion": "1.0.0", "name": "chained", "plugins": [node.bridge(ipMasq=False), stubborn]})
    node.plugin(
        "stubborn",
        'case "$CNI_COMMAND" in DEL) echo \'{"cniVersion":"1.0.0","code":99,"msg":"no"}\'; exit 1;; esac\n'
        f"{sys.executable} -c 'import json,sys; print(json.dumps(json.load(sys.stdin)[\"prevResult\"]))'",
    )
    pod = node.pod("chained", "chained")
    answer = pod.add()
    assert not answer.exit_code, answer
    assert pod.delete().code == 99
    ip("netns", "del", pod.namespace)
    (reclaimed,) = leaky.wait_reclaimed(LeakKind.DETACH_UNFINISHED, seconds=30.0)
    assert any("stubborn" in sentence for sentence in reclaimed.evidence), reclaimed
    node.assert_detached(pod)


def test_removed_network_does_not_block_a_reclaim(leaky: Leaky) -> None:
    lost = leaky.attached()
    leaky.node.no_nad("macvlan-conf")
    leaky.abandon(lost)
    leaky.wait_reclaimed(LeakKind.SANDBOX_GONE)
    leaky.node.assert_detached(lost)


def test_missing_plugin_does_not_block_the_address(make_leaky: Callable[..., Leaky]) -> None:
    leaky = make_leaky(native="never")
    node = leaky.node
    copy = node.bin / "copied-macvlan"
    copy.write_bytes(Path("/usr/lib/cni/macvlan").read_bytes())
    copy.chmod(0o755)
    node.nad("copied", node.macvlan(type="copied-macvlan", name="copied"))
    lost = node.pod("lost", "copied")
    assert not lost.add().exit_code
    copy.unlink()
    leaky.abandon(lost)
    leaky.wait_reclaimed(LeakKind.DETACH_UNFINISHED, seconds=30.0)
    node.assert_detached(lost)


# --- files and links -------------------------------------------------------------------------------------------------


def reserve(node: Node, name: str, content: str, *, age: float = _LONG_AGO, network: str = "default") -> Path:
    path = node.addresses / network / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_only_unowned_addresses_are_freed(leaky: Leaky) -> None:
    node = leaky.node
    alive = leaky.attached()
    stranger, ended = "a" * 64, "b" * 64
    leaky.runtime.knows(alive.container_id, stranger, ended=(ended,))
    dead = reserve(node, "10.87.77.1", f"{'d' * 64}\r\neth0")
    old_style = reserve(node, "10.87.77.2", "e" * 64)
    torn = reserve(node, "10.87.77.3", "")
    garbage = reserve(node, "10.87.77.4", "\x00\x01 what")
    kept = [
        reserve(node, "10.87.77.5", f"{stranger}\r\neth0"),  # the runtime has it
        reserve(node, "10.87.77.6", f"{ended}\r\neth0"),  # the runtime has it still
        reserve(node, "10.87.77.7", f"{alive.container_id}\r\neth7"),  # the ledger has it
        reserve(node, "10.87.77.8", f"{'f' * 64}\r\neth0", age=5.0),  # another plugin's ADD may be in progress
        reserve(node, "not-an-address", ""),
        reserve(node, "last_reserved_ip.0", "10.87.77.200"),
    ]
    ip("addr", "add", "10.87.77.9/16", "dev", "uplink1")
    kept.append(reserve(node, "10.87.77.9", f"{'9' * 64}\r\neth0"))  # an interface has it
    kept.append(reserve(node, "10.87.77.10", "", age=0))
    ip("addr", "add", "10.87.77.10/16", "dev", "uplink1")
    (node.addresses / "default" / "10.87.77.11").mkdir()
    leaky.wait_reclaimed(LeakKind.ADDRESS_UNOWNED, 2)
    leaky.wait_reclaimed(LeakKind.ADDRESS_TORN, 2)
    leaky.looked_at()
    assert not [path for path in (dead, old_style, torn, garbage) if path.exists()]
    assert not [path for path in kept if not path.exists()]
    node.assert_attached(alive)
    for path in kept:
        path.unlink()
    (node.addresses / "default" / "10.87.77.11").rmdir()


def test_only_torn_files_are_freed_without_a_runtime(leaky: Leaky) -> None:
    leaky.attached()
    leaky.runtime.stop()
    dead = reserve(leaky.node, "10.87.77.1", f"{'d' * 64}\r\neth0")
    torn = reserve(leaky.node, "10.87.77.3", "")
    eventually(lambda: not torn.exists(), "the torn file is freed")
    leaky.looked_at()
    assert dead.exists()
    dead.unlink()


def test_address_with_a_new_owner_is_not_freed(leaky: Leaky) -> None:
    """Its owner appears between the scans and the reclaim: the last scan finds it."""
    node = leaky.node
    leaky.attached()
    path = reserve(node, "10.87.77.1", f"{'d' * 64}\r\neth0")
    eventually(lambda: leaky.observed(LeakKind.ADDRESS_UNOWNED), "it is seen once")
    path.write_text(f"{'e' * 64}\r\neth0")  # so the file is young
    leaky.looked_at(3)
    assert path.read_text().startswith("e" * 64)
    assert not leaky.reclaimed(LeakKind.ADDRESS_UNOWNED)
    path.unlink()


def test_unowned_node_end_is_deleted(leaky: Leaky) -> None:
    node = leaky.node
    pod = leaky.attached()
    result = json.loads(node.state().sandboxes[pod.key].attachments[0].result)
    (end,) = [each for each in result["interfaces"] if each["name"].startswith("veth") and not each.get("sandbox")]
    assert not pod.delete().exit_code
    ip("link", "add", "vethforeign0", "type", "veth", "peer", "name", "vethforeign1")
    # As if its DEL had left it.
    ip("link", "add", end["name"], "address", end["mac"], "type", "veth", "peer", "name", "vethleft")
    (reclaimed,) = leaky.wait_reclaimed(LeakKind.LINK_UNOWNED)
    assert end["name"] in reclaimed.leak.what
    leaky.looked_at()
    assert end["name"] not in links()
    assert "vethforeign0" in links()
    ip("link", "del", "vethforeign0")


def test_foreign_link_with_a_recorded_name_stays(leaky: Leaky) -> None:
    node = leaky.node
    pod = leaky.attached()
    result = json.loads(node.state().sandboxes[pod.key].attachments[0].result)
    (end,) = [each for each in result["interfaces"] if each["name"].startswith("veth") and not each.get("sandbox")]
    assert not pod.delete().exit_code
    ip("link", "add", end["name"], "address", "02:00:00:00:aa:bb", "type", "veth", "peer", "name", "vethleft")
    leaky.looked_at()
    assert end["name"] in links()
    assert not leaky.observed(LeakKind.LINK_UNOWNED)
    ip("link", "del", end["name"])


def test_device_files_and_results_of_gone_containers_are_freed(leaky: Leaky, tmp_path: Path) -> None:
    alive = leaky.attached()
    known, dead = "a" * 64, "d" * 64
    leaky.runtime.knows(alive.container_id, known)

    def device_info(container_id: str) -> Path:
        return written(tmp_path / "devinfo" / "cni" / f"default-sriov-{container_id}_net1", "{}")

    def result(container_id: str, plugin: str = "plumbline") -> Path:
        config = base64.b64encode(json.dumps({"plugins": [{"type": plugin}]}).encode()).decode()
        text = json.dumps({"kind": "cniCacheV1", "containerId": container_id, "config": config, "ifName": "eth0"})
        return written(tmp_path / "results" / f"plumbline-{container_id}-eth0", text)

    stale = [device_info(dead), result(dead)]
    kept = [
        device_info(known),
        device_info(alive.container_id),
        result(known),
        result(alive.container_id),
        result("c" * 64, "bridge"),
        written(tmp_path / "devinfo" / "cni" / "something-else", "{}"),
    ]
    leaky.wait_reclaimed(LeakKind.DEVICE_INFO_STALE)
    leaky.wait_reclaimed(LeakKind.RESULT_STALE)
    leaky.looked_at()
    assert not [path for path in stale if path.exists()]
    assert not [path for path in kept if not path.exists()]


def written(path: Path, text: str, age: float = _LONG_AGO) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    then = time.time() - age
    os.utime(path, (then, then))
    return path


# --- commands --------------------------------------------------------------------------------------------------------


def test_command_on_an_older_observation_frees_nothing(make_leaky: Callable[..., Leaky]) -> None:
    leaky = make_leaky(reconciles=False)
    lost = leaky.attached()
    leaky.abandon(lost)
    eventually(lambda: len(leaky.observed(LeakKind.SANDBOX_GONE)) == 2, "it is seen twice")
    first, second = [stored.event for stored in leaky.node.events() if isinstance(stored.event.data, LeakObserved)]
    assert isinstance(first.data, LeakObserved)
    order = replace(
        first,
        id=type(first.id)("stale"),
        cause=first.id,
        data=ReclaimRequested(request="stale", leak=first.data.leak),  # type: ignore[arg-type]
    )
    append(leaky.node, order)
    (failed,) = eventually(lambda: leaky.datas(LeakReclaimFailed), "it is refused")
    assert failed.failure.error_class is ErrorClass.EVIDENCE_CHANGED
    assert lost.key in leaky.node.state().sandboxes
    again = replace(
        order,
        id=type(first.id)("fresh"),
        cause=second.id,
        data=ReclaimRequested(request="fresh", leak=first.data.leak),  # type: ignore[arg-type]
    )
    append(leaky.node, again)
    leaky.wait_reclaimed(LeakKind.SANDBOX_GONE)
    append(leaky.node, replace(again, id=type(first.id)("twice")))
    eventually(lambda: len(leaky.datas(LeakReclaimFailed)) == 2, "the second of the same is refused")
    assert NodeName(leaky.node.name) == again.node


def test_gc_without_sandboxes_frees_default_addresses(make_leaky: Callable[..., Leaky]) -> None:
    leaky = make_leaky(leaks={"policy": "off"}, reconciles=False)
    node = leaky.node
    stale, kept = reserve(node, "10.87.77.1", f"{'d' * 64}\r\neth0"), reserve(node, "10.87.77.2", f"{'e' * 64}\r\neth0")
    conf = node.conf(node.bridge("1.1.0"), version="1.1.0")
    valid = [{"containerID": "e" * 64, "ifname": "eth0"}]
    request = {**conf, "cni.dev/valid-attachments": valid}
    assert node.runtime.call("GC", {"CNI_PATH": "/usr/lib/cni"}, request).answer() == (0, "", "")
    assert not stale.exists()
    assert kept.exists()
    kept.unlink()
