"""Deadline: how long somebody waits."""

from __future__ import annotations

import asyncio

import pytest

from events.schema import ErrorClass, Failure, Phase
from nodeworker.deadline import Deadline, deadline_in, seconds_since, seconds_until

ENOUGH = Failure(error_class=ErrorClass.OVERTAKEN, phase=Phase.ADD, message="a DEL came", code=11)


async def test_it_ends_at_its_deadline() -> None:
    patience = Deadline(0.01)
    with pytest.raises(TimeoutError):
        async with patience:
            await asyncio.Event().wait()
    assert not patience.left
    assert patience.failure.error_class is ErrorClass.ABANDONED


async def test_it_ends_when_told_and_says_why() -> None:
    patience = Deadline(60)
    asyncio.get_running_loop().call_soon(patience.end, ENOUGH)
    with pytest.raises(TimeoutError):
        async with patience:
            await asyncio.Event().wait()
    assert not patience.left
    assert patience.failure is ENOUGH


async def test_once_ended_it_lets_nothing_begin_that_waits() -> None:
    patience = Deadline(60)
    patience.end(ENOUGH)
    with pytest.raises(TimeoutError):
        async with patience:
            await asyncio.Event().wait()


async def test_the_first_reason_stands() -> None:
    patience = Deadline(0)
    patience.end(ENOUGH)
    assert patience.failure.error_class is ErrorClass.ABANDONED


async def test_it_can_be_told_again_while_its_block_cleans_up() -> None:
    patience = Deadline(60)

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            patience.end(ENOUGH)

    asyncio.get_running_loop().call_soon(patience.end, ENOUGH)
    with pytest.raises(TimeoutError):
        async with patience:
            await work()


async def test_several_blocks_share_it() -> None:
    patience = Deadline(60)
    for _ in range(3):
        async with patience:
            await asyncio.sleep(0)
    assert patience.left > 50


async def test_a_deadline_is_a_time_that_others_can_read() -> None:
    assert 9 < seconds_until(deadline_in(10)) <= 10
    assert seconds_until(deadline_in(-10)) == 0
    assert seconds_until("") == 0
    assert 9 < seconds_since(deadline_in(-10)) < 11
    assert seconds_since(deadline_in(10)) == 0
