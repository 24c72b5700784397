"""Fold events into a state."""

from __future__ import annotations

from collections.abc import Iterable

from events.fold import State
from events.schema import Event, Stored


def numbered(events: Iterable[Event]) -> list[Stored]:
    return [Stored(sequence, event) for sequence, event in enumerate(events, 1)]


def applied(events: Iterable[Event], *, keep_closed: bool = False) -> State:
    state = State(keep_closed=keep_closed)
    for stored in numbered(events):
        state.apply(stored)
    return state


def reasons(state: State) -> list[str]:
    return [anomaly.reason for anomaly in state.anomalies]
