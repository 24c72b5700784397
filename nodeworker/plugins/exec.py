"""Execute a plugin, so that one that hangs, floods or dies fails its own request and no other.

A child costs 0.1 to 0.2 ms more than a blocking spawn and wait, and 0.2 ms less than a child of ``asyncio``, which
takes a thread: ``Popen`` uses vfork, a pidfd reports the end, and standard input is a file in memory. A start on a
thread was measured: it is no faster, and a caller cancelled meanwhile would leave a child behind. With full processors
it would halve the loop's delay, from 4 to 2 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from events.schema import ErrorClass, PlannedAttachment, PluginRun
from nodeworker.plugins.api import PluginError, Runner
from nodeworker.plugins.orphans import MARKER, process_ids
from nodeworker.plugins.spec.conflist import is_file_name, type_of

STDOUT_LIMIT: Final = 2 * 1024 * 1024
"""Bytes that a plugin may print on standard output."""
STDOUT_RECORDED: Final = 16 * 1024
"""Bytes of standard output that ``PluginRun`` keeps, from the start."""
STDERR_RECORDED: Final = 8 * 1024
"""Bytes of standard error that ``PluginRun`` keeps, from the end."""

_BUSY_RETRIES: Final = 5
_BUSY_PAUSE: Final = 0.2
"""Seconds between attempts to execute a binary that is being written."""
_GROUP_CHECKS: Final = 100
_GROUP_PAUSE: Final = 0.02
"""Seconds between checks whether a killed group has ended, and the number of checks."""
_CHUNK: Final = 64 * 1024
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UNUSABLE_FILE: Final = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP, errno.ETXTBSY}
)


class PluginExecutor:
    """Runs plugins, each in its own session and with only PATH of the worker's environment.

    It is also the ``Runners`` of a worker that executes every plugin.
    """

    def __init__(self, *, marker: str) -> None:
        """*marker* is put into every child's environment: see ``nodeworker.plugins.orphans``."""
        self._base = {"PATH": os.environ.get("PATH", _PATH), MARKER: marker}

    def runner(self, config: str, native: bool, plugin_folders: Sequence[str]) -> Runner:
        """See ``api.Runners``."""
        return self

    def require(self, config: str, native: bool, plugin_folders: Sequence[str]) -> None:
        """See ``api.Runners``."""
        find(type_of(config), plugin_folders)

    def is_one_pool_job(self, attachment: PlannedAttachment) -> bool:
        """See ``api.Runners``."""
        return False

    async def remove_links(self, attachments: Sequence[PlannedAttachment], netns: str) -> None:
        """See ``api.Runners``."""

    async def run(
        self,
        plugin_type: str,
        *,
        command: str,
        env: Mapping[str, str],
        stdin: bytes,
        plugin_folders: Sequence[str],
        timeout: float,  # noqa: ASYNC109 - it ends with a killed process group, not with a cancelled wait
    ) -> tuple[PluginRun, bytes]:
        """Return how *plugin_type* ran, whatever its exit code, and all that it printed on standard output.

        *plugin_folders* are searched for the binary, *timeout* is in seconds. Raises PluginError: plugin_missing
        (nothing to execute), plugin_timeout, plugin_output (more than STDOUT_LIMIT), internal (the node has no process
        to spare). When it raises, also for a cancellation, the plugin's process group has been killed and is gone.
        """
        if timeout <= 0:
            raise PluginError(ErrorClass.PLUGIN_TIMEOUT, f"plugin {plugin_type} was not started: no time was left")
        loop = asyncio.get_running_loop()
        started = loop.time()
        binary = find(plugin_type, plugin_folders)
        child = await _start(binary, {**env, **self._base, "CNI_COMMAND": command}, stdin)
        timer = loop.call_at(started + timeout, child.kill, ErrorClass.PLUGIN_TIMEOUT)
        try:
            await child.wait()
        finally:
            timer.cancel()
        run = PluginRun(
            type=plugin_type,
            command=command,
            seconds=loop.time() - started,
            exit_code=child.exit_code,
            stdout=child.stdout[:STDOUT_RECORDED].decode(errors="replace"),
            stderr=child.stderr.decode(errors="replace"),
        )
        if child.killed_for is not None:
            reason = (
                f"printed more than {STDOUT_LIMIT >> 20} MiB"
                if child.killed_for is ErrorClass.PLUGIN_OUTPUT
                else f"did not finish within {timeout:.1f} s"
            )
            raise PluginError(child.killed_for, f"plugin {plugin_type} {reason} and was killed", run)
        return run, bytes(child.stdout)


class _Child:
    """A started plugin: reads its pipes and notes when its process has ended.

    Raises OSError when the binary can't be executed or the node has no room for a process.
    """

    def __init__(self, binary: str, env: Mapping[str, str], stdin: bytes) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.killed_for: ErrorClass | None = None
        with _memory_file(stdin) as source:
            self._process = subprocess.Popen(
                (binary,),
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=env,
                cwd="/",
                start_new_session=True,
            )
        assert self._process.stdout
        assert self._process.stderr
        self._out, self._err = self._process.stdout, self._process.stderr
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError:
            self._process.kill()
            self._process.wait()
            self._close_pipes()
            raise
        self._loop.add_reader(self._out, self._on_stdout)
        self._loop.add_reader(self._err, self._on_stderr)
        self._loop.add_reader(self._pidfd, self._on_end)

    @property
    def exit_code(self) -> int:
        """Negative: the signal that ended it."""
        assert self._process.returncode is not None
        return self._process.returncode

    def kill(self, reason: ErrorClass) -> None:
        """Kill the process group, unless the plugin has ended."""
        if self._process.returncode is not None:
            return
        self.killed_for = self.killed_for or reason
        # Until the plugin is reaped, its process ID, which is also the group's, is not reused.
        os.killpg(self._process.pid, signal.SIGKILL)

    async def wait(self) -> None:
        """Return when the plugin has ended. A cancellation kills it first, and is raised when it is gone."""
        try:
            await asyncio.shield(self._ended)
        except asyncio.CancelledError:
            self.kill(ErrorClass.ABANDONED)
            while not self._ended.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(self._ended)
            raise

    def _on_stdout(self) -> None:
        self._take_stdout(self._read(self._out.fileno(), _CHUNK))

    def _on_stderr(self) -> None:
        self._take_stderr(self._read(self._err.fileno(), _CHUNK))

    def _read(self, fd: int, size: int) -> bytes:
        data = os.read(fd, size)
        if not data:
            self._loop.remove_reader(fd)
        return data

    def _take_stdout(self, data: bytes) -> None:
        self.stdout += data
        if len(self.stdout) > STDOUT_LIMIT:
            self._loop.remove_reader(self._out)
            self.kill(ErrorClass.PLUGIN_OUTPUT)

    def _take_stderr(self, data: bytes) -> None:
        self.stderr += data
        del self.stderr[:-STDERR_RECORDED]

    def _on_end(self) -> None:
        """Read what the pipes hold and no more: a grandchild may keep them open and write for as long as it lives."""
        if len(self.stdout) <= STDOUT_LIMIT:
            self._take_stdout(os.read(self._out.fileno(), _waiting(self._out.fileno())))
        self._take_stderr(os.read(self._err.fileno(), _waiting(self._err.fileno())))
        for fd in (self._out.fileno(), self._err.fileno(), self._pidfd):
            self._loop.remove_reader(fd)
        was_killed = self._end_group_of_the_killed() or self.killed_for is not None
        self._process.wait()
        self._close_pipes()
        os.close(self._pidfd)
        self._settle(_GROUP_CHECKS if was_killed else 0)

    def _end_group_of_the_killed(self) -> bool:
        """If a signal ended the plugin, kill what it had started: that would reserve addresses after the DEL.

        Return whether a signal ended it. It is not reaped yet, so the group's ID is still its own.
        """
        end = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        if end is None or end.si_code == os.CLD_EXITED:
            return False
        os.killpg(self._process.pid, signal.SIGKILL)
        return True

    def _settle(self, checks: int) -> None:
        """Wait for the rest of a killed group too: its pending kernel requests must not happen after a later DEL.

        The end of a group can only be polled. A process stuck in the kernel is given up after two seconds.
        """
        if checks and _group_lives(self._process.pid):
            self._loop.call_later(_GROUP_PAUSE, self._settle, checks - 1)
        else:
            self._ended.set_result(None)

    def _close_pipes(self) -> None:
        self._out.close()
        self._err.close()


def find(plugin_type: str, plugin_folders: Sequence[str]) -> str:
    """Return the path of the plugin's binary. Raises PluginError (plugin_missing)."""
    folders = [folder for folder in plugin_folders if os.path.isabs(folder)]
    if is_file_name(plugin_type):
        for folder in folders:
            binary = os.path.join(folder, plugin_type)
            if os.path.isfile(binary):
                return binary
    raise PluginError(
        ErrorClass.PLUGIN_MISSING,
        f"plugin {plugin_type} is not in {' or '.join(folders) or 'any folder'}: install it on the node",
    )


async def _start(binary: str, env: Mapping[str, str], stdin: bytes) -> _Child:
    retries = _BUSY_RETRIES
    while True:
        try:
            return _Child(binary, env, stdin)
        except OSError as error:
            if error.errno != errno.ETXTBSY or not retries:
                raise _not_started(binary, error) from error
        retries -= 1
        await asyncio.sleep(_BUSY_PAUSE)


def _not_started(binary: str, error: OSError) -> PluginError:
    error_class = ErrorClass.PLUGIN_MISSING if error.errno in _UNUSABLE_FILE else ErrorClass.INTERNAL
    reason = os.strerror(error.errno) if error.errno else str(error)
    return PluginError(error_class, f"plugin {binary} can't be executed: {reason}")


@contextlib.contextmanager
def _memory_file(data: bytes) -> Iterator[int]:
    """A file in memory that holds *data*, to be read from the start."""
    fd = os.memfd_create("cni-stdin")
    try:
        with open(fd, "wb", buffering=0, closefd=False) as file:
            file.write(data)
            file.seek(0)
        yield fd
    finally:
        os.close(fd)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    # Processes are left, perhaps only zombies: process 1 adopts a plugin's children, and may reap them late or never.
    return any(_in_group(pid, group) for pid in process_ids())


def _in_group(pid: int, group: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, _, its_group = file.read().rpartition(b")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(its_group) == group and state not in {b"Z", b"X"}


def _waiting(fd: int) -> int:
    """Return how many bytes the pipe *fd* holds."""
    return struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]
