from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reconciler.status.guard.restore_backoff import CONTESTED, MAX_BACKOFF, QUIET_TIME, RestoreBackoff


def test_the_first_restore_is_immediate_and_later_ones_wait() -> None:
    contests, now, pauses = RestoreBackoff(), 0.0, list[float]()
    for _ in range(14):
        pause = contests.wait("x", now)
        pauses.append(pause)
        now += pause
        contests.restored("x", now)
    assert pauses[:5] == [0.0, 1.0, 2.0, 4.0, 8.0]
    assert max(pauses) == MAX_BACKOFF


def test_after_a_quiet_time_a_restore_is_immediate_again() -> None:
    contests = RestoreBackoff()
    for now in range(5):
        contests.restored("x", float(now))
    assert contests.contested(5.0) == 1
    assert contests.wait("x", 4.0 + QUIET_TIME) == 0.0
    assert contests.restored("x", 4.0 + QUIET_TIME) == 1
    assert contests.contested(4.0 + QUIET_TIME) == 0


def test_each_thing_has_its_own_backoff() -> None:
    contests = RestoreBackoff()
    for _ in range(CONTESTED):
        contests.restored("x", 0.0)
    assert contests.wait("y", 0.0) == 0.0


@given(st.lists(st.floats(0.0, 30.0), max_size=300))
def test_frequent_changes_cause_rare_restores(gaps: list[float]) -> None:
    """At most a dozen restores in an hour of changes, and a few per ten minutes afterwards."""
    contests, now, done = RestoreBackoff(), 0.0, list[float]()
    for gap in gaps:
        now += gap
        if contests.wait("x", now) == 0.0:
            contests.restored("x", now)
            done.append(now)
    assert len(done) <= 13 + now / MAX_BACKOFF
