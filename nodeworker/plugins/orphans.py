"""Let plugins finish that outlived their worker: one that is killed halfway may leave a torn file of host-local.

Every plugin, and every process that it starts, has a marker in its environment. A new worker looks for the marker of
the previous one, and waits for those processes before it touches their attachments.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Final

MARKER: Final = "PLUMBLINE_DELEGATE"
"""Environment variable of every plugin. An entry point that finds it was called by a plugin of Plumbline: a loop."""


def process_ids() -> Iterator[int]:
    """Yield the IDs of all processes, also of zombies."""
    return (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())


def orphans(marker: str) -> list[int]:
    """Return the IDs of the living processes that carry *marker*, without the caller's own."""
    return [pid for pid in process_ids() if pid != os.getpid() and _carries(pid, marker)]


async def end_orphans(marker: str, grace: float) -> int:
    """Return how many processes that carry *marker* had to be killed, once none is left.

    They get *grace* seconds to finish. Call it before the first plugin runs under *marker*.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + grace
    killed: set[int] = set()
    while found := orphans(marker):  # repeatedly: what was found may have started another process
        async with contextlib.AsyncExitStack() as stack:
            pidfds = {pid: pidfd for pid in found if (pidfd := _open(stack, pid, marker)) is not None}
            left = await _ended(pidfds, max(0.0, ends_at - loop.time()))
            for pid in left:
                killed.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfds[pid], signal.SIGKILL)
            await _ended({pid: pidfds[pid] for pid in left}, None)
    return len(killed)


def _carries(pid: int, marker: str) -> bool:
    """Return whether the process has *marker* in its environment; a zombie has no environment."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{MARKER}={marker}".encode() in file.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False


def _open(stack: contextlib.AsyncExitStack, pid: int, marker: str) -> int | None:
    """Return a pidfd of *pid*, or None if it has ended. The second check, after opening, rules out a reused ID."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    stack.callback(os.close, pidfd)
    return pidfd if _carries(pid, marker) else None


async def _ended(pidfds: dict[int, int], seconds: float | None) -> list[int]:
    """Wait until all processes have ended, or for *seconds*; return those that have not."""
    if not pidfds:
        return []
    loop = asyncio.get_running_loop()
    ends: dict[int, asyncio.Future[None]] = {}
    for pid, pidfd in pidfds.items():
        ends[pid] = end = loop.create_future()
        loop.add_reader(pidfd, _settle, end)
    try:
        await asyncio.wait(ends.values(), timeout=seconds)
    finally:
        for pidfd in pidfds.values():
            loop.remove_reader(pidfd)
    return [pid for pid, end in ends.items() if not end.done()]


def _settle(end: asyncio.Future[None]) -> None:
    if not end.done():
        end.set_result(None)
