"""Hold a node to its installation: one step looks at everything, changes what must be, and may be repeated for ever.

The order is what keeps pods from the wrong network: the runtime is told of Plumbline once the worker answers, never
before; from Multus, or from an older configuration of ours, it goes over in one rename; and what it was told stays when
the default network's configuration can't be used, or this process ends.
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
from nodeworker.host.install.files import held, move, put, remove
from nodeworker.host.install.generate import Generated
from nodeworker.host.install.primary import MULTUS, OWN, Primary

log = structlog.get_logger(__name__)

SAVED = ".plumbline-saved"
"""What is added to the name of a file of Multus' that makes room for ours."""

_MODE = 0o600
_PERIOD = 1.0
_GONE_FOR_GOOD = 10.0
"""Seconds after which a default network whose configuration vanished is given up for another one."""


def uninstalled_marker(settings: Settings) -> Path:
    """Return the file that keeps a watching installer from undoing an uninstallation. It is gone after a reboot."""
    return Path(settings.run_dir) / "uninstalled"


class Installer:
    """Installs one node, again and again. *binary* is the entry point to install."""

    def __init__(
        self, settings: Settings, section: InstallSection, binary: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._section = section
        self._binary = binary
        self._socket = settings.socket
        self._marker = uninstalled_marker(settings)
        self._bin_dir = Path(section.cni_bin_dir)
        self._conf_dir = Path(section.cni_conf_dir)
        self._clock = clock
        self._followed: Path | None = None
        self._gone_since: float | None = None

    def resume(self) -> None:
        """Take back what an uninstallation said. Raises InstallError."""
        try:
            self._marker.unlink(missing_ok=True)
        except OSError as error:
            raise InstallError(f"{self._marker} can't be removed: {error.strerror}") from error

    def install_entry_point(self) -> None:
        """Put the binary in its place. Raises InstallError."""
        with self._changing(self._bin_dir, "plugins"):
            if entry_point.install(self._binary, self._bin_dir):
                log.info("entry_point_installed", file=str(self._bin_dir / entry_point.NAME))

    def configure(self) -> None:
        """Have the runtime call Plumbline. Raises InstallError; NotYetError when it may work in a moment."""
        with self._changing(self._conf_dir, "configurations"):
            self._configure()

    @contextlib.contextmanager
    def _changing(self, folder: Path, what: str) -> Iterator[None]:
        """Hold *folder* meanwhile, the runtime's for *what*. Raises InstallError."""
        try:
            with held(folder):
                if self._marker.exists():
                    raise NotYetError("Plumbline was uninstalled here; `plumbline install` installs it again")
                yield
        except OSError as error:
            raise InstallError(
                f"{folder} can't be changed ({error.strerror}: {error.filename}): name the container runtime's folder "
                f"of CNI {what}, and see that it can be written to"
            ) from error

    def _configure(self) -> None:
        multus = [path for name in MULTUS if (path := self._conf_dir / name).exists()]
        if multus and not self._section.replace_multus:
            raise InstallError(
                f"{multus[0]} goes before {OWN[0]}, so the runtime would go on using Multus: "
                "install with --replace-multus, which sets it aside, or remove it"
            )
        generated = self._generate(multus)
        self._check_order(multus, generated)
        path = self._conf_dir / generated.file_name
        if multus or not _holds(path, generated.content):
            entry_point.ask(self._bin_dir, self._socket, generated.question)
        if put(path, generated.content, _MODE):
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
        now = self._clock()
        self._gone_since = now if self._gone_since is None else self._gone_since
        if now - self._gone_since < _GONE_FOR_GOOD:
            raise NotYetError(
                f"{self._followed} is gone: if it does not come back within {_GONE_FOR_GOOD:.0f} s, {found.path} "
                "becomes the default network"
            )
        self._followed, self._gone_since = found.path, None
        return found

    def _check_order(self, multus: list[Path], generated: Generated) -> None:
        """Refuse to install what the runtime would never read: it takes the first file by name."""
        for path in primary.files_in(self._conf_dir):
            if path.name < generated.file_name and path not in multus and path.name not in OWN:
                raise InstallError(
                    f"{path} goes before {generated.file_name}, so the runtime would go on using it: rename it to a "
                    "name like 10-default.conflist"
                )


def install(installer: Installer, seconds: float, stop: threading.Event) -> None:
    """Install, waiting up to *seconds* for what may come about by itself. Raises InstallError."""
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
    """Install, and hold the node to it until *stop*. What can't be is logged once, and tried again every second."""
    said, wanted = "", True
    while not stop.is_set():
        try:
            if wanted or not binary.exists():
                installer.install_entry_point()
                wanted = False
            installer.configure()
            said = ""
        except InstallError as error:
            if str(error) != said:
                log.warning("installation_waits", reason=str(error))
            said = str(error)
        stop.wait(_PERIOD)


def _holds(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content
