"""Decide what to do about a sandbox that no longer looks as recorded.

Pure: the worker observes, this module judges, the worker repairs. Time is an argument: seconds of a monotonic clock.
``repairs`` returns what to repair. ``RepairSchedule`` decides when: with a rate limit per node, with a growing backoff
if the drift comes back, and never again after repeated failures, until the drift changes.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from events.fold import Sandbox, SandboxKey
from events.schema import Drift, DriftKind, ErrorClass, EventId, Failure, NodeName

GIVE_UP = 5
"""Failed repairs of the same drift in a row."""
_IN_VAIN = frozenset({ErrorClass.NOT_REPAIRABLE, ErrorClass.NAMESPACE_INVALID})
"""Failures after which no other attempt is made. A namespace that is gone, be it by a reboot, does not come back."""
FREE = 3
"""Repairs of one sandbox without a pause between them."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 300.0
REST = 60.0
"""Seconds for which a sandbox must be as it should be, beyond the last pause, to begin anew without pauses."""
LOST = 120.0
"""Seconds after which an order that nothing was heard of is given once more: nodes and hubs may be away."""
NODE_BURST = 50
NODE_RATE = 50.0
"""Repairs of one node: at once, and in a second."""

_ORDER = (
    DriftKind.PARENT_MISSING,
    DriftKind.PARENT_DOWN,
    DriftKind.LINK_MISSING,
    DriftKind.PORT_DETACHED,
    DriftKind.VLANS_CHANGED,
    DriftKind.MTU_CHANGED,
    DriftKind.MAC_CHANGED,
    DriftKind.LINK_DOWN,
    DriftKind.ADDRESS_FOREIGN,
    DriftKind.ADDRESS_MISSING,
    DriftKind.ROUTE_MISSING,
    DriftKind.FILTER_MISSING,
    DriftKind.MASQUERADE_MISSING,
)
"""Each needs those before it: a route its address, an address its link, a link its parent."""
_RANKS = {kind: rank for rank, kind in enumerate(_ORDER)}


def repairs(sandbox: Sandbox, policy: Callable[[str], str]) -> tuple[Drift, ...]:
    """Return what of the drift of *sandbox* is to be put right, in the order in which it has to be done.

    *policy* tells of each network whether it is to be repaired. Interfaces are done in the order of the plan: a later
    one may rest on one before. What no worker can do is asked for too, once: the refusal says why.
    """
    places = {attachment.plan.ifname: place for place, attachment in enumerate(sandbox.attachments)}
    wanted = [
        drift
        for drift in sandbox.drifts
        if drift.kind in _RANKS and drift.ifname in places and policy(drift.network) == "repair"
    ]
    return tuple(sorted(wanted, key=lambda drift: (places[drift.ifname], _RANKS[drift.kind])))


def _pause(asked: int) -> float:
    """Return the seconds after the repair of number *asked* until there may be another."""
    return 0.0 if asked < FREE else min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(asked - FREE, 30))


class RepairOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A repair that is to be asked for now."""

    sandbox: SandboxKey
    node: NodeName
    cause: EventId
    drifts: tuple[Drift, ...]


class _Case(msgspec.Struct, kw_only=True):
    """A sandbox that drifts, or did a while ago."""

    node: NodeName
    cause: EventId = EventId("")
    drifts: tuple[Drift, ...] = ()
    """What is to be put right; nothing: it is as it should be, or it is nobody's to repair."""
    seen: tuple[Drift, ...] = ()
    """All that differs, as of the last look."""
    since: str = ""
    """When its drift was first observed, RFC 3339; empty: it has none."""
    ordered_until: float = 0.0
    """Until when an order may still be under way."""
    asked: int = 0
    """Repairs, since it last was at rest."""
    failures: int = 0
    """In a row, of the same drift."""
    given_up: bool = False
    due: float = 0.0
    """When it may next be repaired."""


class _Allowance:
    """How many repairs a node can still take."""

    def __init__(self, now: float) -> None:
        self._left = float(NODE_BURST)
        self._at = now

    def wait(self, now: float) -> float:
        """Return the seconds until the node can take another."""
        self._left = min(NODE_BURST, self._left + (now - self._at) * NODE_RATE)
        self._at = now
        return max(0.0, (1 - self._left) / NODE_RATE)

    def take(self) -> None:
        """Use one up."""
        self._left -= 1


class RepairSchedule:
    """When to repair which sandbox."""

    def __init__(self, policy: Callable[[str], str]) -> None:
        self._policy = policy
        self._cases: dict[SandboxKey, _Case] = {}
        self._nodes: dict[NodeName, _Allowance] = {}

    @property
    def open(self) -> int:
        """How many sandboxes drift."""
        return sum(1 for case in self._cases.values() if case.since)

    def observed(self, sandbox: Sandbox, at: str, now: float) -> tuple[Drift, ...]:
        """Take note of how *sandbox* was observed at *at*, RFC 3339; return what of its drift was not there before.

        An order under way is void by that, if there was one: it rests on what was seen before.
        """
        case = self._case(sandbox, now)
        wanted = repairs(sandbox, self._policy)
        if set(wanted) != set(case.drifts):
            case.failures, case.given_up = 0, False
        case.drifts, case.cause, case.ordered_until = wanted, sandbox.drift, 0.0
        case.since = (case.since or at) if sandbox.drifts else ""
        fresh = tuple(drift for drift in sandbox.drifts if drift not in case.seen)
        case.seen = sandbox.drifts
        return fresh

    def repaired(self, sandbox: Sandbox, now: float) -> str:
        """Take note that what was asked for is done; return since when *sandbox* had drifted, empty if unknown."""
        case = self._case(sandbox, now)
        case.failures, case.given_up, case.ordered_until = 0, False, 0.0
        case.drifts, case.cause = repairs(sandbox, self._policy), sandbox.drift
        since, case.seen = case.since, sandbox.drifts
        if not sandbox.drifts:
            case.since = ""
        return since

    def failed(self, sandbox: Sandbox, failure: Failure, now: float) -> bool:
        """Take note that a repair failed; return whether *sandbox* is hereby given up, until something else differs."""
        if failure.error_class is ErrorClass.EVIDENCE_CHANGED:
            return False  # what was observed instead came before this, and has an order of its own
        case = self._case(sandbox, now)
        case.ordered_until = 0.0
        case.drifts, case.cause = repairs(sandbox, self._policy), sandbox.drift
        case.failures += 1
        if case.given_up or not case.drifts:
            return False
        case.given_up = failure.error_class in _IN_VAIN or case.failures >= GIVE_UP
        return case.given_up

    def forget(self, key: SandboxKey) -> None:
        """Take note that the sandbox is on its way out."""
        self._cases.pop(key, None)

    def due(self, now: float) -> tuple[list[RepairOrder], float | None]:
        """Return the repairs to ask for now, and the seconds until there may be more; None: until something happens."""
        orders: list[RepairOrder] = []
        waits: list[float] = []
        for key, case in list(self._cases.items()):
            if not case.since and now > case.due + REST:
                del self._cases[key]
                continue
            if not case.drifts or case.given_up:
                continue
            allowance = self._nodes[case.node]
            wait = max(case.due - now, case.ordered_until - now, allowance.wait(now))
            if wait > 0:
                waits.append(wait)
                continue
            allowance.take()
            orders.append(self._order(key, case, now))
        return orders, min(waits, default=None)

    def not_sent(self, order: RepairOrder) -> None:
        """Take note that *order* could not be sent: it is due again, after the pause that a sent one has."""
        if (case := self._cases.get(order.sandbox)) is not None and case.cause == order.cause:
            case.ordered_until = 0.0

    def _order(self, key: SandboxKey, case: _Case, now: float) -> RepairOrder:
        if now > case.due + REST:
            case.asked = 0
        case.asked += 1
        case.ordered_until = now + LOST
        case.due = now + _pause(case.asked)
        return RepairOrder(sandbox=key, node=case.node, cause=case.cause, drifts=case.drifts)

    def _case(self, sandbox: Sandbox, now: float) -> _Case:
        self._nodes.setdefault(sandbox.node, _Allowance(now))
        if (case := self._cases.get(sandbox.key)) is None:
            case = self._cases[sandbox.key] = _Case(node=sandbox.node, due=now)
        return case
