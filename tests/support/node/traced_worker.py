"""A worker that notes every call of Plumbline's functions, in all its processes, and every netlink message.

Each process appends lines to its own file in the folder ``PLUMBLINE_TRACE``. A call is noted with its logical
stack: where a task was started by a function of ours, the stack continues with that function's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from events.process import logs
from events.process.settings import load
from nodeworker import __main__ as worker
from nodeworker.settings import WorkerSettings
from tests.support.repository import REPOSITORY

FOLDER = "PLUMBLINE_TRACE"
NETLINK = "netlink message"

_OURS = tuple(f"{REPOSITORY / room}/" for room in ("events", "nodeworker"))
_INLINE = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>"})
"""Frames that newer versions of Python do not have: comprehensions are a part of their function."""
_SENDS = frozenset({"send", "sendto", "sendmsg"})


class Call(NamedTuple):
    """One call: when, by the clock that all processes share, and the stack, as ``file function``, outermost first."""

    at: float
    stack: tuple[str, ...]

    @property
    def function(self) -> str:
        """What was called."""
        return self.stack[-1]


def calls(folder: Path) -> list[Call]:
    """Return the calls of all processes, in order."""
    lines = (line for path in folder.iterdir() for line in path.read_text().splitlines())
    found = (json.loads(line) for line in lines)
    return sorted(Call(at, tuple(stack)) for at, stack in found)


class _Tracer:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._stack: ContextVar[tuple[str, ...]] = ContextVar("stack", default=())
        self._started_by: weakref.WeakKeyDictionary[asyncio.Task[Any], tuple[str, ...]] = weakref.WeakKeyDictionary()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """See ``sys.setprofile``."""
        if event == "c_call":
            if getattr(argument, "__name__", "") in _SENDS and _is_netlink(argument.__self__):
                self._note((*self._logical(frame), NETLINK))
        elif event in ("call", "return") and _is_ours(frame):
            stack = self._logical(frame)
            if event == "call":
                self._note(stack)
            self._stack.set(stack if event == "call" else stack[:-1])

    def _logical(self, frame: FrameType | None) -> tuple[str, ...]:
        names: list[str] = []
        while frame is not None:
            if _is_ours(frame):
                code = frame.f_code
                names.append(f"{os.path.relpath(code.co_filename, REPOSITORY)} {code.co_qualname}")
            frame = frame.f_back
        return (*self._outer(), *reversed(names))

    def _outer(self) -> Sequence[str]:
        """Return the stack of the function that started the current task: a task inherits its context."""
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return ()
        if task is None:
            return ()
        return self._started_by.setdefault(task, self._stack.get())

    def _note(self, stack: tuple[str, ...]) -> None:
        path = os.path.join(self._folder, str(os.getpid()))
        file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)  # a native process closes all that it inherits
        os.write(file, f"{json.dumps((time.monotonic(), stack))}\n".encode())
        os.close(file)


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OURS) and frame.f_code.co_name not in _INLINE


def _is_netlink(connection: object) -> bool:
    return isinstance(connection, socket.socket) and connection.family == socket.AF_NETLINK


def main() -> None:
    """Run the worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    options, _ = parser.parse_known_args()
    settings = load(options.config, WorkerSettings)
    logs.configure(settings.log_level, "worker")
    tracer = _Tracer(os.environ[FOLDER])
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    asyncio.run(worker.run(settings))


if __name__ == "__main__":
    main()
