"""A mount namespace for programs with fixed folders on the node."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from events.process.child_process import die_with_parent

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_PRIVATE, _MS_SHARED = 0x1000, 0x40000, 0x100000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def own_mounts(replaced: Mapping[Path, Path], shared: Path) -> Iterator[Callable[[], Callable[[], None]]]:
    """Make a mount namespace in which each folder of *replaced* is replaced by its value.

    Yield a function that returns a ``preexec_fn``, which enters it and ends the process with this one. Mounts in it are
    visible to later processes; the node sees those in *shared*, which is unmounted at the end.
    """
    _mount(shared, shared, _MS_BIND)
    try:
        _mount(None, shared, _MS_SHARED)
        namespace = _made(replaced, shared)
        try:
            yield lambda: _entering(namespace)
        finally:
            os.close(namespace)
    finally:
        for point in sorted(_mount_points(), reverse=True):
            if point.is_relative_to(shared):
                subprocess.run(["umount", "--lazy", point], check=True)


def _made(replaced: Mapping[Path, Path], shared: Path) -> int:
    dies = die_with_parent()

    def prepare() -> None:
        dies()
        _call("unshare", _CLONE_NEWNS)
        for point in _mount_points():
            if point != shared:
                _libc.mount(None, os.fsencode(point), None, _MS_PRIVATE, None)  # out of reach: no need
        for place, own in replaced.items():
            _mount(own, place, _MS_BIND)

    holder = subprocess.Popen(["sleep", "infinity"], preexec_fn=prepare)  # noqa: PLW1509  # pytest has no other thread
    try:
        return os.open(f"/proc/{holder.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        holder.kill()
        holder.wait()


def _entering(namespace: int) -> Callable[[], None]:
    dies = die_with_parent()

    def prepare() -> None:
        dies()
        _call("setns", namespace, _CLONE_NEWNS)

    return prepare


def _mount_points() -> list[Path]:
    lines = Path("/proc/thread-self/mountinfo").read_text().splitlines()
    return [Path(line.split()[4]) for line in lines]


def _mount(source: Path | None, target: Path, flags: int) -> None:
    _call("mount", os.fsencode(source) if source else None, os.fsencode(target), None, flags, None)


def _call(function: str, *args: int | bytes | None) -> None:
    if _libc[function](*args) != 0:
        raise OSError(ctypes.get_errno(), function)
