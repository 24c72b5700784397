"""Keep a node installed: a step checks everything, changes what is missing, and may be repeated without end.

The order keeps pods on the right network. The runtime's configuration changes only after the worker answers. One rename
replaces Multus' configuration, or our older one. The configuration stays if the default network's becomes invalid, or
this process ends.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from events.process.settings import InstallSection, Settings
from nodeworker.host.install import InstallError, NotYetError, entry_point, generate, primary
from nodeworker.host.install.files import locked, move, remove, write_file
from nodeworker.host.install.generate import Generated
from nodeworker.host.install.primary import MULTUS, OWN, Primary

log = structlog.get_logger(__name__)

SAVED = ".plumbline-saved"
"""The suffix of Multus' configuration files that ours replaces."""

_MODE = 0o600
_PERIOD = 1.0
_EXPECTED_WAIT = 10.0
"""Seconds that a node may be not ready to be installed, without a warning."""
_GONE_FOR_GOOD = 10.0
"""Seconds after which another default network replaces one whose configuration was removed."""


def uninstalled_marker(settings: Settings) -> Path:
    """Return the file that stops a watching installer after an uninstallation. A reboot removes it."""
    return Path(settings.run_dir) / "uninstalled"


class Installer:
    """Installs one node, repeatedly. *binary* is the entry point to install."""

    def __init__(
        self, settings: Settings, section: InstallSection, binary: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._section = section
        self._binary = binary
        self._socket = settings.socket
        self._marker = uninstalled_marker(settings)
        self._bin_dir = Path(section.cni_bin_dir)
        self._conf_dir = Path(section.cni_conf_dir)
        self.clock = clock
        self._followed: Path | None = None
        self._gone_since: float | None = None

    def resume(self) -> None:
        """End an uninstallation: a watching installer installs again. Raises InstallError."""
        try:
            self._marker.unlink(missing_ok=True)
        except OSError as error:
            raise InstallError(f"{self._marker} can't be removed: {error.strerror}") from error

    def install_entry_point(self) -> None:
        """Install the binary. Raises InstallError."""
        with self._changing(self._bin_dir, "plugins"):
            if entry_point.install(self._binary, self._bin_dir):
                log.info("entry_point_installed", file=str(self._bin_dir / entry_point.NAME))

    def configure(self) -> None:
        """Configure the runtime to call Plumbline. Raises InstallError; NotYetError if it may succeed soon."""
        with self._changing(self._conf_dir, "configurations"):
            self._configure()

    @contextlib.contextmanager
    def _changing(self, folder: Path, what: str) -> Iterator[None]:
        """Lock the runtime's *folder* of *what* for the block. Raises InstallError."""
        try:
            with locked(folder):
                if self._marker.exists():
                    raise NotYetError("Plumbline was uninstalled here; `plumbline install` installs it again")
                yield
        except OSError as error:
            raise InstallError(
                f"{folder} can't be changed ({error.strerror}: {error.filename}): configure the container runtime's "
                f"folder of CNI {what}, and make it writable"
            ) from error

    def _configure(self) -> None:
        multus = [path for name in MULTUS if (path := self._conf_dir / name).exists()]
        if multus and not self._section.replace_multus:
            raise InstallError(
                f"{multus[0]} sorts before {OWN[0]}, so the runtime would go on using Multus: "
                "install with --replace-multus, which renames it, or remove it"
            )
        generated = self._generate(multus)
        self._check_order(multus, generated)
        path = self._conf_dir / generated.file_name
        if multus or not _has_content(path, generated.content):
            entry_point.check_status(self._bin_dir, self._socket, generated.question)
        if write_file(path, generated.content, _MODE):
            log.info("configuration_installed", file=str(path))
        for old in multus:
            move(old, old.with_name(old.name + SAVED))
            log.info("multus_set_aside", file=str(old), to=old.name + SAVED)
        for name in OWN:
            if name != generated.file_name:
                remove(self._conf_dir / name)

    def _generate(self, multus: list[Path]) -> Generated:
        saved = [path for name in MULTUS if (path := self._conf_dir / (name + SAVED)).exists()]
        if sources := multus or saved:
            return generate.from_multus(sources[0], self._section)
        return generate.from_primary(self._primary(), self._section)

    def _primary(self) -> Primary:
        folder = Path(self._section.cni_autoconf_dir) if self._section.cni_autoconf_dir else self._conf_dir
        found = primary.find(folder, self._section.master_file_name)
        if self._followed in (None, found.path) or self._followed.exists():
            self._followed, self._gone_since = found.path, None
            return found
        now = self.clock()
        self._gone_since = now if self._gone_since is None else self._gone_since
        if now - self._gone_since < _GONE_FOR_GOOD:
            raise NotYetError(
                f"{self._followed} is gone: unless it returns within {_GONE_FOR_GOOD:.0f} s, {found.path} "
                "becomes the default network"
            )
        self._followed, self._gone_since = found.path, None
        return found

    def _check_order(self, multus: list[Path], generated: Generated) -> None:
        """Raise InstallError if the runtime would never read our configuration: it uses the first file by name."""
        for path in primary.files_in(self._conf_dir):
            if path.name < generated.file_name and path not in multus and path.name not in OWN:
                raise InstallError(
                    f"{path} sorts before {generated.file_name}, so the runtime would go on using it: rename it to a "
                    "name like 10-default.conflist"
                )


def install(installer: Installer, seconds: float, stop: threading.Event) -> None:
    """Install; retry up to *seconds* while it may succeed soon. Raises InstallError."""
    until = time.monotonic() + seconds
    installer.resume()
    installer.install_entry_point()
    while True:
        try:
            return installer.configure()
        except NotYetError:
            if time.monotonic() >= until or stop.wait(_PERIOD / 10):
                raise


def watch(installer: Installer, binary: Path, stop: threading.Event) -> None:
    """Install, and keep the node installed until *stop*. Logs each failure once, and retries every second.

    What may be possible soon is a warning only if it lasts: at every start the worker needs a moment until it answers.
    """
    logged, pending, waits_since = ("", False), True, installer.clock()
    while not stop.is_set():
        try:
            if pending or not binary.exists():
                installer.install_entry_point()
                pending = False
            installer.configure()
            logged, waits_since = ("", False), installer.clock()
        except InstallError as error:
            lasts = not isinstance(error, NotYetError) or installer.clock() > waits_since + _EXPECTED_WAIT
            if (str(error), lasts) != logged:
                (log.warning if lasts else log.info)("installation_waits", reason=str(error))
            logged = str(error), lasts
        stop.wait(_PERIOD)


def _has_content(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content
