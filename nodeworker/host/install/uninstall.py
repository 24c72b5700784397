"""Uninstall a node: first the configuration, last the binary, and neither while pods depend on it.

Without Plumbline's configuration, the runtime still frees a pod's default network: directly, or with its cached
configuration, which calls the entry point. It frees no other network. So nothing is removed while the ledger has a
sandbox with another network, and the binary stays until no attached sandbox has its namespace any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import structlog

from events import subjects
from events.fold import AttachmentPhase, Sandbox, State
from events.ledger.ledger import LedgerUnavailableError
from events.nats.ledger import JetStreamLedger
from events.process.settings import InstallSection, Settings, ledger_address
from events.schema import NodeName
from nodeworker.host.install import InstallError, entry_point
from nodeworker.host.install.files import locked, move, remove
from nodeworker.host.install.installer import SAVED, uninstalled_marker
from nodeworker.host.install.primary import MULTUS, OWN

log = structlog.get_logger(__name__)

_CONNECT_TIMEOUT = 5.0
_SHOWN = 10


class StillAttachedError(InstallError):
    """Pods have networks that only Plumbline can free."""


class BinaryKeptError(InstallError):
    """The configuration is removed, but not the binary, because the DEL of a pod may still need it."""


class Uninstaller:
    """Uninstalls one node. *force*: also with attached pods, and without asking the ledger."""

    def __init__(self, settings: Settings, section: InstallSection, *, force: bool) -> None:
        self._settings = settings
        self._bin_dir = Path(section.cni_bin_dir)
        self._conf_dir = Path(section.cni_conf_dir)
        self._force = force

    async def run(self) -> None:
        """Uninstall.

        Raises StillAttachedError, without a change; BinaryKeptError; InstallError; LedgerError and SettingsError if the
        ledger can't be read.
        """
        if not self._force and (holders := with_more_networks(await self._sandboxes())):
            raise StillAttachedError(
                f"pods of this node have additional networks, which only Plumbline can detach: {_names(holders)}; "
                "delete or drain them first, or use --force"
            )
        try:
            with locked(self._conf_dir):
                self._remove_configuration()
            if not self._force and (left := with_namespace(await self._sandboxes())):
                raise BinaryKeptError(
                    f"the configuration is removed; {self._bin_dir / entry_point.NAME} stays, because the runtime may "
                    f"need it to detach {_names(left)}; uninstall again after they are gone, or with --force"
                )
            with locked(self._bin_dir):
                if remove(self._bin_dir / entry_point.NAME):
                    log.info("entry_point_removed", file=str(self._bin_dir / entry_point.NAME))
        except OSError as error:
            raise InstallError(f"{error.filename} can't be changed: {error.strerror}") from error

    def _remove_configuration(self) -> None:
        """Restore the runtime's previous configuration; at every moment it has one."""
        marker = uninstalled_marker(self._settings)
        marker.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker.touch(0o600)
        for name in MULTUS:
            saved = self._conf_dir / (name + SAVED)
            if saved.exists():
                move(saved, self._conf_dir / name)
                log.info("multus_restored", file=str(self._conf_dir / name))
        for name in OWN:
            if remove(self._conf_dir / name):
                log.info("configuration_removed", file=str(self._conf_dir / name))

    async def _sandboxes(self) -> list[Sandbox]:
        """Return the node's sandboxes in the ledger."""
        address = ledger_address(self._settings)
        state = State()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                ledger = await JetStreamLedger.connect(address, name="plumbline-uninstall")
        except TimeoutError:
            raise LedgerUnavailableError(
                f"the ledger at {address.url} does not answer, so the pods that depend on Plumbline are unknown: "
                "start `plumbline up`, or use --force"
            ) from None
        try:
            async for stored in ledger.read(subjects.pattern(NodeName(self._settings.node_name))):
                state.apply(stored)
        finally:
            await ledger.close()
        return list(state.sandboxes.values())


def with_more_networks(sandboxes: Iterable[Sandbox]) -> list[Sandbox]:
    """Return the sandboxes that hold, or may hold, more than the default network."""
    return [
        sandbox
        for sandbox in sandboxes
        if any(a.phase is not AttachmentPhase.DETACHED and not a.plan.default for a in sandbox.attempted())
    ]


def with_namespace(sandboxes: Iterable[Sandbox]) -> list[Sandbox]:
    """Return the sandboxes that may still exist: their namespace does, or is not recorded."""
    return [sandbox for sandbox in sandboxes if not sandbox.netns or Path(sandbox.netns).exists()]


def _names(sandboxes: list[Sandbox]) -> str:
    names = sorted(f"{sandbox.pod} ({sandbox.key.container_id[:12]})" for sandbox in sandboxes)
    more = len(names) - _SHOWN
    return ", ".join([*names[:_SHOWN], f"and {more} more"] if more > 0 else names)
