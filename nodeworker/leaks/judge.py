"""Judge which resources have no owner, from the facts of one scan.

Pure. The absence of a pod from the cluster proves nothing, and neither does a question without an answer: such a
resource is undecided, and stays untouched. A leak is freed only if two scans judged it so, and a third immediately
before (``nodeworker.leaks.reclaimer``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import NamedTuple

import msgspec

from events.fold import Sandbox, SandboxKey, SandboxPhase
from events.schema import ContainerId, IfName, Leak, LeakId, LeakKind

LONGEST_ADD = 600.0
"""Seconds that an ADD takes at most with any runtime (CRI-O: five minutes, plus the rest of the request)."""


class Inventory(NamedTuple):
    """The container IDs of a runtime."""

    present: frozenset[str]
    """Of sandboxes and containers, including those that have ended: their DEL may still come."""
    running: frozenset[str]
    """Of running sandboxes."""
    runtime: str
    """The runtime, for people."""


class HeldFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that holds a resource for a container, or for no container."""

    kind: LeakKind
    """The kind of leak that it is without an owner."""
    path: str
    what: str
    """The address, for a file of host-local."""
    holder: ContainerId = ContainerId("")
    """Empty: the file names no owner."""
    ifname: IfName = IfName("")
    network: str = ""
    content: bytes = b""
    """The content of an address's file."""
    changed: float = 0.0
    """When it was last written, in seconds since 1970."""


class HeldLink(msgspec.Struct, frozen=True, kw_only=True):
    """A link of the node that was recorded for a sandbox which the ledger no longer has."""

    name: str
    mac: str
    holder: ContainerId
    ifname: IfName
    network: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one scan. A resource that was not searched for is not in it."""

    boot_id: str
    now: float
    """Seconds since 1970."""
    booted: float
    """When the node was booted, in seconds since 1970."""
    runtime: Inventory | None = None
    """None: it could not be asked, for the ``reason``."""
    reason: str = ""
    absent: bool = False
    """Whether the node has no container runtime with a CRI."""
    sandboxes: tuple[Sandbox, ...] = ()
    """The sandboxes of the ledger, read after the runtime's answer."""
    live: Set[str] = frozenset()
    """All container IDs of the ledger."""
    busy: Set[str] = frozenset()
    """Container IDs with an ADD or a DEL in progress."""
    lost: Mapping[SandboxKey, str] = {}
    """The sandboxes whose namespace is gone, each with a sentence that says how this is known."""
    files: tuple[HeldFile, ...] = ()
    links: tuple[HeldLink, ...] = ()
    in_use: Set[str] = frozenset()
    """Addresses of interfaces in any namespace of the node, as text."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A resource without an owner, as judged from one scan."""

    leak: Leak
    evidence: tuple[str, ...]
    judged: int = 0
    """The sequence of the ledger that was judged (see ``LeakObserved``)."""


class Judgement(msgspec.Struct, kw_only=True):
    """The result of judging one scan."""

    findings: dict[LeakId, Finding] = {}
    undecided: set[LeakId] = set()
    """Resources that may have no owner, without proof."""
    rescan_soon: bool = False
    """Whether to scan again soon: a namespace is gone, and its sandbox may follow."""
    unseen: list[str] = []
    """Sentences that say which part of the node could not be scanned, and why."""
    running: Set[str] = frozenset()
    """Container IDs of the sandboxes that the runtime runs; empty if it could not be asked."""
    unscanned: set[str] = set()
    """Prefixes of the IDs of leaks that could not be searched for."""

    def decides(self, leak_id: LeakId) -> bool:
        """Return whether *leak_id* is known to be a leak, or known to be none."""
        undecided = leak_id in self.undecided or leak_id.startswith(tuple(self.unscanned))
        return leak_id in self.findings or not undecided


def judge(facts: Facts) -> Judgement:
    """Return the leaks that the *facts* prove."""
    judgement = Judgement(running=facts.runtime.running if facts.runtime is not None else frozenset())
    for sandbox in facts.sandboxes:
        _judge_sandbox(sandbox, facts, judgement)
    for held in facts.files:
        _judge_file(held, facts, judgement)
    for link in facts.links:
        _judge_link(link, facts, judgement)
    if facts.runtime is None and (judgement.undecided or facts.sandboxes):
        rest = f"; {len(judgement.undecided)} possible leaks are left alone" if judgement.undecided else ""
        judgement.unseen.append(f"which sandboxes are live: {facts.reason}{rest}")
    return judgement


def sandbox_leak_id(key: SandboxKey) -> LeakId:
    """Return the ID of the leak of a sandbox without an owner."""
    return LeakId(f"sandbox/{key.container_id}/{key.ifname}")


def file_leak_id(path: str) -> LeakId:
    """Return the ID of the leak of the file at *path* without an owner."""
    return LeakId(f"file/{path}")


def link_leak_id(name: str) -> LeakId:
    """Return the ID of the leak of a link of the node without an owner."""
    return LeakId(f"link/{name}")


def _judge_sandbox(sandbox: Sandbox, facts: Facts, judgement: Judgement) -> None:
    key, runtime = sandbox.key, facts.runtime
    lost = facts.lost.get(key, "")
    if key.container_id in facts.busy or sandbox.waiting or not sandbox.holds_resources:
        judgement.rescan_soon |= bool(lost)
        return
    refused = sandbox.phase in (SandboxPhase.DETACH_FAILED, SandboxPhase.ATTACH_FAILED)
    evidence: tuple[str, ...] | None
    if sandbox.boot_id and sandbox.boot_id != facts.boot_id:
        kind, evidence = LeakKind.REBOOTED, _ended_by_reboot(sandbox, lost, facts)
        undecided = runtime is None
    elif not lost:
        return
    elif refused:
        kind, evidence = LeakKind.DETACH_UNFINISHED, _abandoned(sandbox, lost, facts)
        undecided = False
    else:
        absent = runtime is not None and key.container_id not in runtime.present
        kind, evidence = LeakKind.SANDBOX_GONE, (_unknown_to(runtime), lost) if runtime and absent else None
        undecided = runtime is None
    if evidence is None:
        judgement.rescan_soon |= not facts.absent
        if undecided:
            judgement.undecided.add(sandbox_leak_id(key))
        return
    if refused:
        kind = LeakKind.DETACH_UNFINISHED
    _found(judgement, Finding(leak=_sandbox_leak(sandbox, kind), evidence=evidence, judged=sandbox.sequence))


def _ended_by_reboot(sandbox: Sandbox, lost: str, facts: Facts) -> tuple[str, ...] | None:
    """Return the evidence that *sandbox* ended with an earlier boot; None: there is none."""
    booted = f"it is of boot {sandbox.boot_id}, and the node is in boot {facts.boot_id}"
    if facts.runtime is not None:
        return None if sandbox.key.container_id in facts.runtime.running else (booted, _not_running(facts.runtime))
    # Without a runtime no sandbox can run. A path with a process ID may belong to any new process.
    if facts.absent and (lost or sandbox.netns.startswith("/proc/")):
        return booted, facts.reason
    return None


def _abandoned(sandbox: Sandbox, lost: str, facts: Facts) -> tuple[str, ...] | None:
    """Return the evidence that the runtime has abandoned *sandbox*, whose DEL or rollback a plugin refused.

    The runtime has requested the DEL, or has received the failure of the ADD.
    """
    runtime = facts.runtime
    if runtime is not None and sandbox.key.container_id in runtime.running:
        return None
    why = sandbox.failure.message if sandbox.failure is not None else "a plugin refused"
    return f"its DEL is not done: {why}", lost, facts.reason if runtime is None else _not_running(runtime)


def _judge_file(held: HeldFile, facts: Facts, judgement: Judgement) -> None:
    if held.holder in facts.live:
        return
    if held.kind is LeakKind.ADDRESS_TORN:
        evidence: Iterable[str] = ("its file names no owner",)
    elif (reasons := _holder_gone(held, facts)) is not None:
        evidence = reasons
    else:
        if facts.runtime is None:
            judgement.undecided.add(file_leak_id(held.path))
        return
    if held.kind in (LeakKind.ADDRESS_TORN, LeakKind.ADDRESS_UNOWNED):
        if held.what in facts.in_use:
            return
        evidence = (*evidence, "no interface in any namespace of the node has it")
    _found(judgement, Finding(leak=_file_leak(held), evidence=tuple(evidence)))


def _holder_gone(held: HeldFile, facts: Facts) -> tuple[str, ...] | None:
    """Return the evidence that the holder of *held* is gone; None: there is none.

    The holder of a young file may not be in the runtime's list yet: another plugin's ADD runs before that.
    """
    runtime = facts.runtime
    if runtime is None or held.holder in runtime.present:
        return None
    age = facts.now - held.changed
    if held.changed < facts.booted:
        old = "its file is older than the node's boot"
    elif age > LONGEST_ADD:
        old = f"its file is older than the {LONGEST_ADD:g} s that an ADD takes at most"
    else:
        return None
    return (f"the ledger has no container {held.holder[:12]}", _unknown_to(runtime), old)


def _judge_link(link: HeldLink, facts: Facts, judgement: Judgement) -> None:
    """A link is judged only if the ledger records its name and MAC for a sandbox that was detached since."""
    runtime = facts.runtime
    if link.holder in facts.live:
        return
    if runtime is not None and link.holder in runtime.running:
        return
    leak = Leak(
        id=link_leak_id(link.name),
        kind=LeakKind.LINK_UNOWNED,
        what=f"{link.name} {link.mac}",
        holder=link.holder,
        ifname=link.ifname,
        network=link.network,
    )
    evidence = (
        f"it was made for container {link.holder[:12]}, which is detached",
        facts.reason if runtime is None else _not_running(runtime),
    )
    _found(judgement, Finding(leak=leak, evidence=evidence))


def _found(judgement: Judgement, finding: Finding) -> None:
    judgement.findings[finding.leak.id] = finding


def _sandbox_leak(sandbox: Sandbox, kind: LeakKind) -> Leak:
    container_id, ifname = sandbox.key
    return Leak(
        id=sandbox_leak_id(sandbox.key),
        kind=kind,
        what=f"{container_id[:12]} {ifname} of pod {sandbox.pod}",
        holder=container_id,
        ifname=ifname,
        network=" ".join(attachment.plan.network for attachment in sandbox.attachments),
        path=sandbox.netns,
    )


def _file_leak(held: HeldFile) -> Leak:
    return Leak(
        id=file_leak_id(held.path),
        kind=held.kind,
        what=held.what,
        holder=held.holder,
        ifname=held.ifname,
        network=held.network,
        path=held.path,
    )


def _not_running(runtime: Inventory) -> str:
    return f"{runtime.runtime} does not run it"


def _unknown_to(runtime: Inventory) -> str:
    return f"{runtime.runtime} does not know it"


def ordered(findings: Mapping[LeakId, Finding]) -> Iterator[Finding]:
    """Yield *findings*, sandboxes first: reclaiming a sandbox frees its other leaks too."""
    yield from sorted(findings.values(), key=lambda finding: (finding.judged == 0, finding.leak.id))
