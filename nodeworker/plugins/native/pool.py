"""Have native work done by processes that do nothing else, one piece after another.

rtnetlink works in its sender's context, host-local waits for a lock, and each of the hundred system calls of an attach
lets go of the interpreter's lock: on threads of the worker a quarter of its time went into passing that to and fro. The
processes are forked of the worker, which costs little memory, and die with it. One that dies takes the worker with it,
which starts anew with all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import struct
import sys
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from typing import NoReturn

import msgspec
import structlog

from events.process.child_process import die_with_parent
from nodeworker.plugins.native.api import PATIENCE, TRY_AGAIN
from nodeworker.plugins.native.jobs import Clearing, Done, Work, perform_all

log = structlog.get_logger(__name__)

PROCESSES = 2
"""The kernel has one lock for all links, behind which more of them would only queue."""

_AT_ONCE = 16
"""Works that a process is handed together at most: none of them can be called off any more."""
_PAUSE = 0.05
"""Seconds in which a process does other work, before it tries again what somebody holds up."""
_LENGTH = struct.Struct("=I")
_READ_BYTES = 256 * 1024
_STANDARD_FILES = 3

_asked = msgspec.msgpack.Decoder(list[Work | Clearing])
_done = msgspec.msgpack.Decoder(Done)


class NativePool:
    """The processes. Make them while the worker has no other threads: a fork takes along what those hold.

    They keep the descriptors *keep* open, and with them a lock that must not be free before they are gone.
    """

    def __init__(self, keep: Collection[int] = ()) -> None:
        gc.collect()
        gc.freeze()  # or the first collection would make copies of all that is shared
        self.died = asyncio.Event()
        """Set once one of them has ended unasked."""
        self._processes = [_Process(keep, self.died.set) for _ in range(PROCESSES)]

    @property
    def pids(self) -> list[int]:
        """The processes' IDs."""
        return [process.pid for process in self._processes]

    async def do(self, asked: Work | Clearing, place: str) -> Done:
        """Return what came of *asked*; of one *place*, one comes after the other, in the order of the calls.

        What others hold up is tried again until it can be done, or for so long that it is an error; what comes behind
        it for the same place waits for that.

        A cancellation is raised at once where it has not begun, else when it has ended: nothing goes on behind its
        back. Where the process has ended, the caller is cancelled: the worker ends too, and the next goes on with it.
        """
        process = self._process_for(place)
        with process.at_work(place):
            reply = process.ask(asked, place)
            try:
                return await asyncio.shield(reply.done)
            except asyncio.CancelledError:
                reply.called_off = True
                if not reply.begun:
                    reply.done.cancel()
                while not reply.done.done():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.wait([reply.done])
                raise

    def _process_for(self, place: str) -> _Process:
        """Return the one that is at work for *place*, else the one with the least work.

        On a node with little to do that is always the first: what it knows of host-local's folders stays true.
        """
        for process in self._processes:
            if place in process.works:
                return process
        return min(self._processes, key=lambda process: process.works.total())

    def close(self) -> None:
        """Have them end, when what they do is done, and wait for that."""
        for process in self._processes:
            process.close()


class _Reply:
    """What is to come of a work."""

    def __init__(self, asked: Work | Clearing, place: str) -> None:
        loop = asyncio.get_running_loop()
        self.asked = asked
        self.place = place
        self.until = loop.time() + PATIENCE
        """When it is an error that others hold it up."""
        self.begun = False
        self.called_off = False
        self.done: asyncio.Future[Done] = loop.create_future()


class _Process:
    """One process, with a pipe for each direction.

    What is asked of it at the same time, or while it is busy, it is handed together: to wake it for each would take a
    tenth of the time of an attach.
    """

    def __init__(self, keep: Collection[int], on_death: Callable[[], None]) -> None:
        self._on_death = on_death
        self._waiting: deque[_Reply] = deque()
        self._begun: deque[_Reply] = deque()
        self._held: dict[str, list[_Reply]] = {}
        """By place: what is to be tried again, and all that came behind it, in order."""
        self._received = bytearray()
        self._dead = False
        self.works: Counter[str] = Counter()
        """How many there are for each place, waiting or begun."""
        theirs, self._requests = os.pipe()
        self._replies, answers = os.pipe()
        tie = die_with_parent()
        self.pid = os.fork()
        if not self.pid:
            _become_one(tie, {theirs, answers, *keep}, theirs, answers)
        os.close(theirs)
        os.close(answers)
        os.set_blocking(self._replies, False)
        asyncio.get_running_loop().add_reader(self._replies, self._read)

    @contextlib.contextmanager
    def at_work(self, place: str) -> Iterator[None]:
        """Count a work for *place* meanwhile."""
        self.works[place] += 1
        try:
            yield
        finally:
            self.works[place] -= 1
            if not self.works[place]:
                del self.works[place]

    def ask(self, asked: Work | Clearing, place: str) -> _Reply:
        """Have it done behind what was asked before; what comes of it is cancelled when the process ends."""
        reply = _Reply(asked, place)
        if self._dead:
            reply.done.cancel()
            return reply
        self._waiting.append(reply)
        if len(self._waiting) == 1 and not self._begun:
            asyncio.get_running_loop().call_soon(self._hand_over)
        return reply

    def _hand_over(self) -> None:
        """Hand over what waits, if the process does."""
        if self._begun or self._dead:
            return
        while self._waiting and len(self._begun) < _AT_ONCE:
            reply = self._waiting.popleft()
            if reply.place in self._held:
                self._held[reply.place].append(reply)
            elif not reply.done.cancelled():
                reply.begun = True
                self._begun.append(reply)
        if not self._begun:
            return
        try:
            # It is waiting for this, so that also what does not fit the pipe is taken at once.
            _write(self._requests, msgspec.msgpack.encode([reply.asked for reply in self._begun]))
        except OSError:
            self._die()

    def close(self) -> None:
        """Let it end, and wait until it has."""
        if not self._dead:
            asyncio.get_running_loop().remove_reader(self._replies)
        self._dead = True
        os.close(self._requests)
        os.close(self._replies)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _read(self) -> None:
        try:
            data = os.read(self._replies, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._die()
            return
        self._received += data
        start, size = 0, _LENGTH.size
        while len(self._received) >= start + size:
            end = start + size + _LENGTH.unpack_from(self._received, start)[0]
            if end > len(self._received):
                break
            self._take(self._begun.popleft(), _done.decode(self._received[start + size : end]))
            start = end
        del self._received[:start]
        self._hand_over()

    def _take(self, reply: _Reply, done: Done) -> None:
        """Pass on what came of it, or have it tried again after a pause, with all that comes behind it."""
        loop = asyncio.get_running_loop()
        if done.code != TRY_AGAIN or (done.begun and loop.time() > reply.until):
            reply.done.set_result(done)
        elif reply.called_off:
            reply.done.cancel()
        else:
            reply.begun = False
            if reply.place not in self._held:
                self._held[reply.place] = []
                loop.call_later(_PAUSE, self._try_again, reply.place)
            self._held[reply.place].append(reply)

    def _try_again(self, place: str) -> None:
        if any(reply.place == place for reply in self._begun):  # of that some may be told to wait, too
            asyncio.get_running_loop().call_later(_PAUSE, self._try_again, place)
            return
        behind = [reply for reply in self._waiting if reply.place == place]
        self._waiting = deque(reply for reply in self._waiting if reply.place != place)
        self._waiting.extend([*self._held.pop(place), *behind])
        self._hand_over()

    def _die(self) -> None:
        if self._dead:
            return
        self._dead = True
        asyncio.get_running_loop().remove_reader(self._replies)
        log.error("native_process_ended", pid=self.pid)
        for reply in (*self._begun, *self._waiting, *itertools.chain(*self._held.values())):
            reply.done.cancel()
        self._on_death()


def _become_one(tie: Callable[[], None], keep: Collection[int], requests: int, replies: int) -> NoReturn:
    """Do what comes, in the child, until nobody is left who could ask."""
    code = 1
    try:
        tie()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM):
            # A terminal or a service manager may send it to all, and it is the worker that sees to the end. To ignore
            # it would be inherited by programs that are executed.
            signal.signal(number, lambda *_: None)
        _close_all_but(keep)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", 1, closefd=False) for fd in (1, 2))  # they may have been others
        _serve(requests, replies)
        code = 0
    except Exception:
        log.exception("native_process_broke")
    finally:
        os._exit(code)


def _close_all_but(keep: Collection[int]) -> None:
    start = _STANDARD_FILES
    for fd in sorted(each for each in keep if each >= _STANDARD_FILES):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def _serve(requests: int, replies: int) -> None:
    while (request := _frame(requests)) is not None:
        for done in perform_all(_asked.decode(request)):
            _write(replies, msgspec.msgpack.encode(done))


def _frame(fd: int) -> bytes | None:
    """Return what came in one piece; None at the end."""
    head = os.read(fd, _LENGTH.size)
    if not head:
        return None
    length, received = _LENGTH.unpack(head)[0], bytearray()
    while len(received) < length:
        received += os.read(fd, length - len(received))
    return bytes(received)


def _write(fd: int, message: bytes) -> None:
    left = memoryview(_LENGTH.pack(len(message)) + message)
    while left:
        left = left[os.write(fd, left) :]
