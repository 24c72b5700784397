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

MAX_FAILURES = 5
"""Consecutive failed repairs of the same drift before the schedule gives up."""
_FINAL_ERRORS = frozenset({ErrorClass.NOT_REPAIRABLE, ErrorClass.NAMESPACE_INVALID})
"""Errors after which a retry is useless. A namespace that is gone, for example after a reboot, does not come back."""
FREE_REPAIRS = 3
"""Repairs of one sandbox without backoff."""
FIRST_BACKOFF = 1.0
MAX_BACKOFF = 300.0
QUIET_TIME = 60.0
"""Seconds without drift, beyond the last backoff, after which the backoff restarts."""
COMMAND_TIMEOUT = 120.0
"""Seconds until a command without an answer is sent again: the node or the hub may have been unavailable."""
NODE_BURST = 50
NODE_RATE = 50.0
"""Rate limit of one node: repairs at once, and per second."""

_ORDER = (
    DriftKind.RESERVATION_MISSING,
    DriftKind.RESERVATION_FOREIGN,
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
    DriftKind.DEVICE_INFO_CHANGED,
)
"""Each kind needs the kinds before it: a route needs its address, an address its link and its reservation."""
_RANKS = {kind: rank for rank, kind in enumerate(_ORDER)}


def repairs(sandbox: Sandbox, policy: Callable[[str], str]) -> tuple[Drift, ...]:
    """Return the drift of *sandbox* to repair, in the order of the repairs.

    *policy* returns the drift policy of a network. Interfaces come in plan order: a later one may depend on an earlier
    one. Drift that no worker can repair is included once: the worker's refusal gives the reason.
    """
    positions = {attachment.plan.ifname: position for position, attachment in enumerate(sandbox.attachments)}
    repairable = [
        drift
        for drift in sandbox.drifts
        if drift.kind in _RANKS and drift.ifname in positions and policy(drift.network) == "repair"
    ]
    return tuple(sorted(repairable, key=lambda drift: (positions[drift.ifname], _RANKS[drift.kind])))


def _backoff(attempts: int) -> float:
    """Return the seconds from repair number *attempts* to the next one."""
    return 0.0 if attempts < FREE_REPAIRS else min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** min(attempts - FREE_REPAIRS, 30))


class RepairOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A repair to request now."""

    sandbox: SandboxKey
    node: NodeName
    cause: EventId
    drifts: tuple[Drift, ...]


class _State(msgspec.Struct, kw_only=True):
    """A sandbox that drifts, or drifted recently."""

    node: NodeName
    cause: EventId = EventId("")
    drifts: tuple[Drift, ...] = ()
    """What to repair; empty: no drift, or the policy excludes it."""
    seen: tuple[Drift, ...] = ()
    """All drift of the last observation."""
    since: str = ""
    """Time of the first observation, RFC 3339; empty: no drift."""
    in_progress_until: float = 0.0
    """Time until which a command may be in progress."""
    attempts: int = 0
    """Repairs since the backoff started."""
    failures: int = 0
    """Consecutive failures for the same drift."""
    given_up: bool = False
    due: float = 0.0
    """Earliest time of the next repair."""


class _RateLimit:
    """The rate limit of one node, a token bucket."""

    def __init__(self, now: float) -> None:
        self._tokens = float(NODE_BURST)
        self._at = now

    def wait(self, now: float) -> float:
        """Return the seconds until the node can take another repair."""
        self._tokens = min(NODE_BURST, self._tokens + (now - self._at) * NODE_RATE)
        self._at = now
        return max(0.0, (1 - self._tokens) / NODE_RATE)

    def take(self) -> None:
        """Consume a token."""
        self._tokens -= 1


class RepairSchedule:
    """Decides when to repair which sandbox."""

    def __init__(self, policy: Callable[[str], str]) -> None:
        self._policy = policy
        self._states: dict[SandboxKey, _State] = {}
        self._nodes: dict[NodeName, _RateLimit] = {}

    @property
    def open(self) -> int:
        """Number of sandboxes with drift."""
        return sum(1 for state in self._states.values() if state.since)

    def observed(self, sandbox: Sandbox, at: str, now: float) -> tuple[Drift, ...]:
        """Record the observation of *sandbox* at *at*, RFC 3339; return its new drift.

        The observation cancels a command in progress: that command rests on an older observation.
        """
        state = self._state(sandbox, now)
        repairable = repairs(sandbox, self._policy)
        if set(repairable) != set(state.drifts):
            state.failures, state.given_up = 0, False
        state.drifts, state.cause, state.in_progress_until = repairable, sandbox.drift, 0.0
        state.since = (state.since or at) if sandbox.drifts else ""
        fresh = tuple(drift for drift in sandbox.drifts if drift not in state.seen)
        state.seen = sandbox.drifts
        return fresh

    def repaired(self, sandbox: Sandbox, now: float) -> str:
        """Record a repair; return the time since which *sandbox* had drifted, empty if unknown."""
        state = self._state(sandbox, now)
        state.failures, state.given_up, state.in_progress_until = 0, False, 0.0
        state.drifts, state.cause = repairs(sandbox, self._policy), sandbox.drift
        since, state.seen = state.since, sandbox.drifts
        if not sandbox.drifts:
            state.since = ""
        return since

    def failed(self, sandbox: Sandbox, failure: Failure, now: float) -> bool:
        """Record a failed repair; return True if the schedule now gives *sandbox* up until its drift changes."""
        if failure.error_class is ErrorClass.EVIDENCE_CHANGED:
            return False  # a newer observation came first, and has its own command
        state = self._state(sandbox, now)
        state.in_progress_until = 0.0
        state.drifts, state.cause = repairs(sandbox, self._policy), sandbox.drift
        state.failures += 1
        if state.given_up or not state.drifts:
            return False
        state.given_up = failure.error_class in _FINAL_ERRORS or state.failures >= MAX_FAILURES
        return state.given_up

    def forget(self, key: SandboxKey) -> None:
        """Remove a sandbox that is being detached."""
        self._states.pop(key, None)

    def due(self, now: float) -> tuple[list[RepairOrder], float | None]:
        """Return the repairs to request now, and the seconds until the next ones; None: no time is set."""
        orders: list[RepairOrder] = []
        waits: list[float] = []
        for key, state in list(self._states.items()):
            if not state.since and now > state.due + QUIET_TIME:
                del self._states[key]
                continue
            if not state.drifts or state.given_up:
                continue
            limit = self._nodes[state.node]
            wait = max(state.due - now, state.in_progress_until - now, limit.wait(now))
            if wait > 0:
                waits.append(wait)
                continue
            limit.take()
            orders.append(self._request(key, state, now))
        return orders, min(waits, default=None)

    def not_sent(self, order: RepairOrder) -> None:
        """Record that *order* could not be sent: the sandbox is due again, after the same backoff."""
        if (state := self._states.get(order.sandbox)) is not None and state.cause == order.cause:
            state.in_progress_until = 0.0

    def _request(self, key: SandboxKey, state: _State, now: float) -> RepairOrder:
        if now > state.due + QUIET_TIME:
            state.attempts = 0
        state.attempts += 1
        state.in_progress_until = now + COMMAND_TIMEOUT
        state.due = now + _backoff(state.attempts)
        return RepairOrder(sandbox=key, node=state.node, cause=state.cause, drifts=state.drifts)

    def _state(self, sandbox: Sandbox, now: float) -> _State:
        self._nodes.setdefault(sandbox.node, _RateLimit(now))
        if (state := self._states.get(sandbox.key)) is None:
            state = self._states[sandbox.key] = _State(node=sandbox.node, due=now)
        return state
