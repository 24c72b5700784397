"""A native process: it does the jobs that come through its pipe, one after another, until the worker closes it."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
from collections.abc import Callable, Collection
from typing import NoReturn

import msgspec
import structlog

from events.process import logs
from nodeworker.plugins.native.api import TRY_AGAIN
from nodeworker.plugins.native.jobs import Job, JobResult, perform
from nodeworker.plugins.native.kit.endpoints import share_endpoints

log = structlog.get_logger(__name__)

LENGTH = struct.Struct("=I")
"""What each message in a pipe begins with: the number of bytes that follow."""
_STANDARD_FILES = 3

_jobs = msgspec.msgpack.Decoder(list[Job])


def run(tie: Callable[[], None], keep: Collection[int], requests: int, replies: int) -> NoReturn:
    """Be a native process: do jobs until the worker closes its pipe."""
    code = 1
    try:
        tie()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM):
            # A terminal or a service manager may signal all processes; this one ends when the worker ends it. The
            # signals are handled, not ignored: executed programs would inherit that they are ignored.
            signal.signal(number, lambda *_: None)
        _close_all_but(keep)
        sys.stdout, sys.stderr = (
            os.fdopen(fd, "w", 1, closefd=False) for fd in (1, 2)
        )  # the worker may have replaced them
        with contextlib.suppress(BrokenPipeError):  # the worker ended; its successor resumes the jobs
            _serve(requests, replies)
        code = 0
    except Exception:
        log.exception("native_process_broke")
    finally:
        os._exit(code)


def write(fd: int, message: bytes) -> None:
    """Write *message* with its length in front."""
    left = memoryview(LENGTH.pack(len(message)) + message)
    while left:
        left = left[os.write(fd, left) :]


def _close_all_but(keep: Collection[int]) -> None:
    start = _STANDARD_FILES
    for fd in sorted(each for each in keep if each >= _STANDARD_FILES):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def _serve(requests: int, replies: int) -> None:
    """Do the jobs that come, in batches, and send each result at once.

    Behind a job that must be retried no other job of its container is attempted, so that their order stays.
    """
    while (batch := _frame(requests)) is not None:
        blocked: set[str] = set()
        with share_endpoints():
            for job in _jobs.decode(batch):
                retry_first = job.retry_group in blocked
                with logs.about(job.pod, job.container_id):
                    result = JobResult(code=TRY_AGAIN, attempted=False) if retry_first else perform(job)
                if job.retry_group and result.code == TRY_AGAIN:
                    blocked.add(job.retry_group)
                write(replies, msgspec.msgpack.encode(result))


def _frame(fd: int) -> bytes | None:
    """Return the next message; None at the end."""
    head = os.read(fd, LENGTH.size)
    if not head:
        return None
    length, received = LENGTH.unpack(head)[0], bytearray()
    while len(received) < length:
        received += os.read(fd, length - len(received))
    return bytes(received)
