"""The answers that entry points wait for, by request ID.

An entry point that lost its connection comes back with the same ID, and gets the answer or waits for it: so a restart
of the worker loses no request.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from events.schema import (
    AttachCompleted,
    AttachFailed,
    Data,
    DetachFailed,
    Failure,
    GcFailed,
    RequestId,
)
from nodeworker.errors import error_json
from nodeworker.planning.resolve.netconf import requested_version

KEEP = 60.0
"""Seconds until an answer that was not fetched is dropped."""


class Reply(NamedTuple):
    """Exit code and standard output for the runtime, and the failure for the metrics."""

    exit_code: int
    stdout: bytes
    failure: Failure | None = None


OK = Reply(0, b"")


def error_reply(failure: Failure, config: str) -> Reply:
    """Return the reply that reports *failure*, in the version of *config*."""
    return Reply(1, error_json(failure, requested_version(config)), failure)


def reply_of(outcome: Data, config: str) -> Reply:
    """Return the reply that an outcome gives."""
    match outcome:
        case AttachCompleted(result=result):
            return Reply(0, result.encode())
        case AttachFailed(failure=failure) | DetachFailed(failure=failure) | GcFailed(failure=failure):
            return error_reply(failure, config)
        case _:
            return OK


class Answers:
    """The answers of the last ``KEEP`` seconds, and the requests that wait for one."""

    def __init__(self) -> None:
        self._answers: dict[RequestId, asyncio.Future[Reply]] = {}
        self._ends: dict[RequestId, asyncio.TimerHandle] = {}

    def open(self, request: RequestId) -> bool:
        """Expect an answer to *request*; return False if it is expected, or given, already."""
        if request in self._answers:
            return False
        self._answers[request] = asyncio.get_running_loop().create_future()
        return True

    async def wait(self, request: RequestId) -> Reply:
        """Return the answer to *request*, which must be open."""
        return await asyncio.shield(self._answers[request])

    def given(self, request: RequestId) -> bool:
        """Return whether *request* has its answer."""
        answer = self._answers.get(request)
        return answer is not None and answer.done()

    def give(self, request: RequestId, reply: Reply) -> None:
        """Answer *request*. The first answer stands."""
        self.open(request)
        answer = self._answers[request]
        if not answer.done():
            answer.set_result(reply)
            self._ends[request] = asyncio.get_running_loop().call_later(KEEP, self._forget, request)

    def cancel(self, request: RequestId) -> None:
        """Expect no answer to *request* any more: its intent was not appended."""
        self._answers.pop(request, None)

    def answer_sent(self, request: RequestId) -> None:
        """Forget *request*: its entry point has the answer and will not ask again.

        A failure stays for ``KEEP`` seconds: an intent that the ledger did not confirm may still arrive, and must find
        that its ADD was answered.
        """
        answer = self._answers.get(request)
        if answer is not None and answer.done() and answer.result().failure is None:
            self._forget(request)

    def _forget(self, request: RequestId) -> None:
        self._answers.pop(request, None)
        if (end := self._ends.pop(request, None)) is not None:
            end.cancel()  # otherwise thousands of timers would stay in the loop
