"""Answers: a repeated request gets the same answer, and no answer is dropped too early."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from events.schema import AttachCompleted, AttachFailed, DetachCompleted, ErrorClass, Failure, IfName, Phase, RequestId
from nodeworker.sandboxes import answers as module
from nodeworker.sandboxes.answers import OK, Answers, Reply, error_reply, reply_of
from tests.support.waiting import until

REQUEST = RequestId("00" * 16)
FAILURE = Failure(error_class=ErrorClass.PLUGIN_FAILED, phase=Phase.ADD, message="no more uplinks", code=42)


async def test_every_waiting_request_gets_the_same_answer() -> None:
    answers = Answers()
    assert answers.open(REQUEST)
    assert not answers.open(REQUEST)
    waiting = [asyncio.create_task(answers.wait(REQUEST)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # its connection broke, which does not affect the others
    answers.give(REQUEST, OK)
    assert await asyncio.gather(*waiting[1:]) == [OK, OK]
    assert answers.given(REQUEST)
    assert await answers.wait(REQUEST) == OK


async def test_the_first_answer_counts() -> None:
    answers = Answers()
    answers.give(REQUEST, OK)
    answers.give(REQUEST, Reply(1, b"{}", FAILURE))
    assert await answers.wait(REQUEST) == OK


async def test_a_fetched_success_is_dropped_and_a_failure_stays() -> None:
    answers = Answers()
    answers.give(REQUEST, OK)
    answers.answer_sent(REQUEST)
    assert not answers.given(REQUEST)
    answers.give(REQUEST, Reply(1, b"{}", FAILURE))
    answers.answer_sent(REQUEST)
    assert answers.given(REQUEST)


async def test_an_answer_that_is_not_fetched_is_dropped_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP", 0.001)
    answers = Answers()
    answers.give(REQUEST, OK)
    await until(lambda: not answers.given(REQUEST))


def test_replies_follow_the_specification() -> None:
    eth0 = IfName("eth0")
    completed = AttachCompleted(request=REQUEST, ifname=eth0, result='{"cniVersion":"1.0.0"}')
    assert reply_of(completed, "") == (0, b'{"cniVersion":"1.0.0"}', None)
    assert reply_of(DetachCompleted(request=REQUEST, ifname=eth0), "") == OK
    refused = reply_of(AttachFailed(request=REQUEST, ifname=eth0, failure=FAILURE), '{"cniVersion":"0.4.0"}')
    assert refused == (1, b'{"cniVersion":"0.4.0","code":42,"msg":"no more uplinks"}', FAILURE)
    assert error_reply(FAILURE, "no JSON").stdout.startswith(b'{"cniVersion":"1.1.0"')


async def test_a_fetched_answer_leaves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []
    call_later = loop.call_later

    def noted(*how: Any) -> asyncio.TimerHandle:
        timers.append(call_later(*how))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", noted)
    answers = Answers()
    for number in range(3):
        answers.give(RequestId(f"r{number}"), OK)
    answers.answer_sent(RequestId("r1"))
    assert [timer.cancelled() for timer in timers] == [False, True, False]
    assert not answers.given(RequestId("r1"))
