"""Judge what is held without an owner, from what a look at the node found.

Pure. Nothing is judged on the absence of a pod from the cluster, and nothing on a question that nobody answered: what
can't be told is ``unsure``, and stays as it is. Freed is only what is judged so twice, and once more right before
(``nodeworker.leaks.reclaimer``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import NamedTuple

import msgspec

from events.fold import Sandbox, SandboxKey, SandboxPhase
from events.schema import ContainerId, IfName, Leak, LeakId, LeakKind

LONGEST_ADD = 600.0
"""Seconds that an ADD may last with any runtime (CRI-O: five minutes, and what the request has left)."""


class Known(NamedTuple):
    """The container IDs that a runtime knows."""

    present: frozenset[str]
    """Of sandboxes and of containers, also of those that have ended: their DEL may still come."""
    running: frozenset[str]
    """Those of sandboxes that run."""
    by: str
    """Who says so, for people."""


class HeldFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that holds something for a container, or for nobody."""

    kind: LeakKind
    """What it is if it has no owner."""
    path: str
    what: str
    """The address, for one of host-local's."""
    holder: ContainerId = ContainerId("")
    """Empty: it names nobody."""
    ifname: IfName = IfName("")
    network: str = ""
    content: bytes = b""
    """What an address's file says."""
    changed: float = 0.0
    """When it was written, in seconds since 1970."""


class HeldLink(msgspec.Struct, frozen=True, kw_only=True):
    """An interface of the node that was recorded as made for a sandbox which the ledger no longer has."""

    name: str
    mac: str
    holder: ContainerId
    ifname: IfName
    network: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What one look found. Of what it did not look for it says nothing."""

    boot_id: str
    now: float
    """Seconds since 1970."""
    booted: float
    """When the node was booted, in seconds since 1970."""
    runtime: Known | None = None
    """None: it could not be asked, for the ``reason``."""
    reason: str = ""
    absent: bool = False
    """True: there is no container runtime with a CRI on this node."""
    sandboxes: tuple[Sandbox, ...] = ()
    """Those that the ledger has, asked for after the runtime."""
    live: Set[str] = frozenset()
    """Container IDs of everything that the ledger has."""
    busy: Set[str] = frozenset()
    """Container IDs of which an ADD or a DEL is under way."""
    lost: Mapping[SandboxKey, str] = {}
    """How it is known that a sandbox' namespace is gone."""
    files: tuple[HeldFile, ...] = ()
    links: tuple[HeldLink, ...] = ()
    in_use: Set[str] = frozenset()
    """Addresses that an interface has in any namespace of the node, as text."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is held without an owner, as far as one look can tell."""

    leak: Leak
    evidence: tuple[str, ...]
    judged: int = 0
    """As in ``LeakObserved``."""


class Judgement(msgspec.Struct, kw_only=True):
    """What follows from a look."""

    findings: dict[LeakId, Finding] = {}
    unsure: set[LeakId] = set()
    """What may be held without an owner, and nobody can tell."""
    soon: bool = False
    """Whether it is worth while to look again soon: a namespace is gone, and its sandbox not quite."""
    unseen: list[str] = []
    running: Set[str] = frozenset()
    """Container IDs of the sandboxes that the runtime runs, as far as it could be asked."""
    blind: set[str] = set()
    """What the IDs begin with of leaks that could not be looked for."""

    def tells_of(self, leak_id: LeakId) -> bool:
        """Return whether it is known that *leak_id* is a leak, or that it is none."""
        return leak_id in self.findings or not (leak_id in self.unsure or leak_id.startswith(tuple(self.blind)))


def judge(facts: Facts) -> Judgement:
    """Return what is held without an owner."""
    judgement = Judgement(running=facts.runtime.running if facts.runtime is not None else frozenset())
    for sandbox in facts.sandboxes:
        _judge_sandbox(sandbox, facts, judgement)
    for held in facts.files:
        _judge_file(held, facts, judgement)
    for link in facts.links:
        _judge_link(link, facts, judgement)
    if facts.runtime is None and (judgement.unsure or facts.sandboxes):
        rest = f"; {len(judgement.unsure)} that may be held by nobody are left alone" if judgement.unsure else ""
        judgement.unseen.append(f"which sandboxes are live: {facts.reason}{rest}")
    return judgement


def sandbox_leak_id(key: SandboxKey) -> LeakId:
    """Return the ID of the leak that a sandbox is once nobody has it."""
    return LeakId(f"sandbox/{key.container_id}/{key.ifname}")


def file_leak_id(path: str) -> LeakId:
    """Return the ID of the leak that the file at *path* is once nobody has it."""
    return LeakId(f"file/{path}")


def link_leak_id(name: str) -> LeakId:
    """Return the ID of the leak that an interface of the node is once nobody has it."""
    return LeakId(f"link/{name}")


def _judge_sandbox(sandbox: Sandbox, facts: Facts, judgement: Judgement) -> None:
    key, runtime = sandbox.key, facts.runtime
    lost = facts.lost.get(key, "")
    if key.container_id in facts.busy or sandbox.waiting or not sandbox.holds_resources:
        judgement.soon |= bool(lost)
        return
    refused = sandbox.phase in (SandboxPhase.DETACH_FAILED, SandboxPhase.ATTACH_FAILED)
    evidence: tuple[str, ...] | None
    if sandbox.boot_id and sandbox.boot_id != facts.boot_id:
        kind, evidence = LeakKind.REBOOTED, _of_another_boot(sandbox, lost, facts)
        unsure = runtime is None
    elif not lost:
        return
    elif refused:
        kind, evidence = LeakKind.DETACH_UNFINISHED, _given_up(sandbox, lost, facts)
        unsure = False
    else:
        absent = runtime is not None and key.container_id not in runtime.present
        kind, evidence = LeakKind.SANDBOX_GONE, (_unknown_to(runtime), lost) if runtime and absent else None
        unsure = runtime is None
    if evidence is None:
        judgement.soon |= not facts.absent
        if unsure:
            judgement.unsure.add(sandbox_leak_id(key))
        return
    if refused:
        kind = LeakKind.DETACH_UNFINISHED
    _found(judgement, Finding(leak=_sandbox_leak(sandbox, kind), evidence=evidence, judged=sandbox.sequence))


def _of_another_boot(sandbox: Sandbox, lost: str, facts: Facts) -> tuple[str, ...] | None:
    """Return how it is known that *sandbox* ended with an earlier boot, None where that is not known."""
    booted = f"it is of boot {sandbox.boot_id}, and the node is in boot {facts.boot_id}"
    if facts.runtime is not None:
        return None if sandbox.key.container_id in facts.runtime.running else (booted, _not_running(facts.runtime))
    # Without a runtime there is nobody to contradict. A path that a process ID is in may be anybody's by now.
    if facts.absent and (lost or sandbox.netns.startswith("/proc/")):
        return booted, facts.reason
    return None


def _given_up(sandbox: Sandbox, lost: str, facts: Facts) -> tuple[str, ...] | None:
    """Return how it is known that nobody counts on *sandbox*, whose DEL, or rollback, a plugin refused.

    Whoever asked for the DEL, or was told that the ADD failed, has given it up.
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
        evidence: Iterable[str] = ("its file names nobody",)
    elif (reasons := _dead(held, facts)) is not None:
        evidence = reasons
    else:
        if facts.runtime is None:
            judgement.unsure.add(file_leak_id(held.path))
        return
    if held.kind in (LeakKind.ADDRESS_TORN, LeakKind.ADDRESS_UNOWNED):
        if held.what in facts.in_use:
            return
        evidence = (*evidence, "no interface in any namespace of the node has it")
    _found(judgement, Finding(leak=_file_leak(held), evidence=tuple(evidence)))


def _dead(held: HeldFile, facts: Facts) -> tuple[str, ...] | None:
    """Return how it is known that the holder of *held* is no more, None where it is not known.

    Its runtime may be about to tell of it: an ADD that is not ours comes before that.
    """
    runtime = facts.runtime
    if runtime is None or held.holder in runtime.present:
        return None
    age = facts.now - held.changed
    if held.changed < facts.booted:
        old = "its file is older than the node's boot"
    elif age > LONGEST_ADD:
        old = f"its file is older than the {LONGEST_ADD:g} s that an ADD may last"
    else:
        return None
    return (f"the ledger has no container {held.holder[:12]}", _unknown_to(runtime), old)


def _judge_link(link: HeldLink, facts: Facts, judgement: Judgement) -> None:
    """A link is only looked at if its name and MAC are recorded as those of a sandbox that was detached since."""
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


def _not_running(runtime: Known) -> str:
    return f"{runtime.by} does not run it"


def _unknown_to(runtime: Known) -> str:
    return f"{runtime.by} does not know it"


def ordered(findings: Mapping[LeakId, Finding]) -> Iterator[Finding]:
    """Yield sandboxes first: what they hold goes with them."""
    yield from sorted(findings.values(), key=lambda finding: (finding.judged == 0, finding.leak.id))
