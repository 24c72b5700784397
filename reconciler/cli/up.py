"""``plumbline up``: server, worker and reconciler of one machine, in the foreground.

Each is a separate process: if one dies, it is restarted while the others continue.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import click
import structlog

from events.exit_codes import ExitCode
from events.nats.server import EmbeddedServer, ServerError
from events.process import logs
from events.process.child_process import die_with_parent
from events.process.settings import Settings, SettingsError, load
from reconciler.cli.errors import exit_with

log = structlog.get_logger(__name__)

_TICK = 0.2
_HEALTH_INTERVAL = 5.0
_FIRST_PAUSE = 0.1
_LAST_PAUSE = 5.0
_STEADY = 10.0
_STOP = 15.0
_KILL = 5.0
_ROOM = 64 * 1024 * 1024


class _Child:
    """A process that is restarted whenever it ends."""

    def __init__(self, name: str, module: str, config: Path | None, *arguments: str) -> None:
        self.name = name
        self._argv = [sys.executable, "-m", module, *_chosen(config), *arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = 0.0

    def supervise(self) -> int | None:
        """Start the process when it is due; return its exit code if it has just ended, else None."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._started + self._pause:
                # SIGTERM when the supervisor dies: the worker can still answer waiting requests.
                self._process = subprocess.Popen(self._argv, preexec_fn=die_with_parent(signal.SIGTERM))  # noqa: PLW1509  # a single system call, no threads
                self._started = now
            return None
        exit_code = self._process.poll()
        if exit_code is not None:
            steady = now - self._started > _STEADY
            self._pause = _FIRST_PAUSE if steady else min(_LAST_PAUSE, max(_FIRST_PAUSE, self._pause * 2))
            self._started = now
            self._process = None
        return exit_code

    def stop(self, meanwhile: Callable[[], None]) -> None:
        """Stop the process and call *meanwhile* until it has ended; kill it after ``_STOP`` seconds."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        if _ends_within(self._process, _STOP, meanwhile):
            return
        log.warning("process_killed", name=self.name, after=_STOP)
        self._process.kill()
        if not _ends_within(self._process, _KILL, meanwhile):
            log.error("process_not_killed", name=self.name, pid=self._process.pid, reason="it waits for the kernel")


class _Supervisor:
    def __init__(self, settings: Settings, config: Path | None, stop: threading.Event, *, adopt: bool) -> None:
        self._stop = stop
        self._adoption = [sys.executable, "-m", "nodeworker.host.adopt", *_chosen(config)] if adopt else []
        self._store = settings.store
        self._server = (
            None
            if settings.ledger.url
            else EmbeddedServer(
                settings.store, Path(settings.run_dir), port=settings.ledger.port, max_store=settings.ledger.max_bytes
            )
        )
        self._children = [_Child("worker", "nodeworker", config)]
        if settings.hub is None:  # with a hub, the reconciler runs once in the cluster
            self._children.append(_Child("reconciler", "reconciler", config))
        if settings.install is not None:
            self._children.append(_Child("install", "nodeworker.host.install", config, "install", "--watch"))
        self._next_health_check = 0.0

    def run(self) -> int:
        """Keep all processes running until the stop event; return the exit code. Raises ServerError."""
        if self._server is not None:
            self._server.start()
            log.info("ledger_started", url=self._server.url, store=str(self._store))
        try:
            if self._adoption and (exit_code := self._adopt()):
                return exit_code
            while not self._stop.is_set():
                self._keep_server()
                for child in self._children:
                    exit_code = child.supervise()
                    if exit_code == ExitCode.WRONG:
                        return exit_code
                    if exit_code is not None:
                        log.warning("process_ended", name=child.name, exit_code=exit_code)
                self._stop.wait(_TICK)
        finally:
            # systemd signals all processes of a service, so the server may have been stopped, too. It runs until worker
            # and reconciler have ended, because they record their end.
            for child in self._children:
                child.stop(self._keep_server)
            if self._server is not None:
                self._server.stop()
        return 0

    def _adopt(self) -> int:
        """Run the adoption; return the exit code to end with, 0: continue, also after a partial adoption."""
        while not self._stop.is_set():
            done = subprocess.run(self._adoption, check=False, preexec_fn=die_with_parent(signal.SIGTERM))
            if done.returncode in (ExitCode.DONE, ExitCode.IN_PART):
                break
            if done.returncode != ExitCode.BUSY:  # the worker of an earlier supervisor ends soon
                return ExitCode.WRONG if done.returncode == ExitCode.WRONG else ExitCode.FAILED
            self._stop.wait(_TICK)
        return 0

    def _keep_server(self) -> None:
        if self._server is None:
            return
        if self._server.ended():
            log.warning("ledger_ended")
            self._restart_server()
        elif time.monotonic() >= self._next_health_check:
            self._next_health_check = time.monotonic() + _HEALTH_INTERVAL
            if not self._server.healthy():
                self._heal_server()

    def _heal_server(self) -> None:
        """Restart the server when the disk has room: after a full disk it stores nothing until a restart."""
        disk = os.statvfs(self._store)
        if disk.f_bavail * disk.f_frsize < _ROOM:
            log.error("ledger_disk_full", store=str(self._store), needed_bytes=_ROOM)
            return
        log.warning("ledger_unhealthy", action="restart")
        assert self._server is not None
        self._server.stop()
        self._restart_server()

    def _restart_server(self) -> None:
        assert self._server is not None
        try:
            self._server.start()
        except (ServerError, OSError) as error:
            log.exception("ledger_start_failed", error=str(error))
            self._stop.wait(1)
        else:
            log.info("ledger_started", url=self._server.url)


def _ends_within(process: subprocess.Popen[bytes], seconds: float, meanwhile: Callable[[], None]) -> bool:
    """Return whether *process* ends within *seconds*; call *meanwhile* while waiting."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TICK)
            return True
        meanwhile()
    return False


def _chosen(config: Path | None) -> list[str]:
    return ["--config", str(config)] if config else []


@click.command("up")
@click.option("--adopt", is_flag=True, help="First take over the pods of Multus, like `plumbline adopt`.")
@click.pass_obj
def command(config: Path | None, adopt: bool) -> None:
    """Run ledger, worker and reconciler of this machine in the foreground.

    With a hub, the reconciler runs in the cluster instead. Processes that end are restarted.

    \b
    Examples:
      plumbline up
      plumbline up --adopt

    Exit codes: 0 after SIGINT or SIGTERM, 1 the start failed, 2 wrong configuration.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = load(config, Settings)
        os.environ[logs.FORMAT_VARIABLE] = logs.chosen_format()  # every child process logs in the same format
        logs.configure(settings.log_level, "up")
        sys.exit(_Supervisor(settings, config, stop, adopt=adopt).run())
    except SettingsError as error:
        raise exit_with(error) from error
    except (ServerError, OSError) as error:
        raise exit_with(error, ExitCode.FAILED) from error
