"""Deadline: the time by which a request must be answered."""

from __future__ import annotations

import asyncio

import pytest

from events.schema import ErrorClass, Failure, Phase
from nodeworker.deadline import Deadline, deadline_in, seconds_since, seconds_until

ENOUGH = Failure(error_class=ErrorClass.OVERTAKEN, phase=Phase.ADD, message="a DEL came", code=11)


async def test_it_ends_at_its_deadline() -> None:
    deadline = Deadline(0.01)
    with pytest.raises(TimeoutError):
        async with deadline:
            await asyncio.Event().wait()
    assert not deadline.left
    assert deadline.failure.error_class is ErrorClass.ABANDONED


async def test_it_ends_when_ended_with_the_reason() -> None:
    deadline = Deadline(60)
    asyncio.get_running_loop().call_soon(deadline.end, ENOUGH)
    with pytest.raises(TimeoutError):
        async with deadline:
            await asyncio.Event().wait()
    assert not deadline.left
    assert deadline.failure is ENOUGH


async def test_once_ended_its_block_is_cancelled_at_once() -> None:
    deadline = Deadline(60)
    deadline.end(ENOUGH)
    with pytest.raises(TimeoutError):
        async with deadline:
            await asyncio.Event().wait()


async def test_the_first_reason_counts() -> None:
    deadline = Deadline(0)
    deadline.end(ENOUGH)
    assert deadline.failure.error_class is ErrorClass.ABANDONED


async def test_it_can_be_ended_again_while_its_block_cleans_up() -> None:
    deadline = Deadline(60)

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            deadline.end(ENOUGH)

    asyncio.get_running_loop().call_soon(deadline.end, ENOUGH)
    with pytest.raises(TimeoutError):
        async with deadline:
            await work()


async def test_several_blocks_share_it() -> None:
    deadline = Deadline(60)
    for _ in range(3):
        async with deadline:
            await asyncio.sleep(0)
    assert deadline.left > 50


async def test_a_deadline_is_a_time_that_others_can_read() -> None:
    assert 9 < seconds_until(deadline_in(10)) <= 10
    assert seconds_until(deadline_in(-10)) == 0
    assert seconds_until("") == 0
    assert 9 < seconds_since(deadline_in(-10)) < 11
    assert seconds_since(deadline_in(10)) == 0
