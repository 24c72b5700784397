"""Keep host-local from giving an address again that a live sandbox of the node holds.

host-local knows only its files, and a file may get lost. The ledger knows what is held. So the guard restores missing
files before an ADD, and refuses the result of an ADD whose address another sandbox holds: a file may get lost between.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextvars import Context

import structlog

from events.fold import Sandbox, SandboxKey, SandboxPhase
from events.ledger.ledger import LedgerError
from events.schema import (
    AttachCompleted,
    DriftObserved,
    DriftRepaired,
    ErrorClass,
    Event,
    Phase,
    PlannedAttachment,
    RequestId,
    WorkerStarted,
)
from nodeworker.errors import RequestFailedError, failed
from nodeworker.journal.journal import Journal
from nodeworker.plugins.native.ipam import recorded, reservations
from nodeworker.plugins.native.ipam.recorded import Reservation
from nodeworker.sandboxes.scheduler import Scheduler

log = structlog.get_logger(__name__)

_TRY_AGAIN = 11
_LIVE = frozenset({SandboxPhase.REQUESTED, SandboxPhase.PLANNED, SandboxPhase.ATTACHED})


class ReservationGuard:
    """The reservations of all live sandboxes: attached ones, and those whose ADD has results."""

    def __init__(self, journal: Journal, scheduler: Scheduler) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self._of_sandboxes: dict[SandboxKey, set[Reservation]] = {}
        self._folders: dict[str, dict[str, dict[SandboxKey, Reservation]]] = {}
        """By path and address. Two sandboxes hold one address only if an earlier version gave it twice."""
        self._restorations: dict[str, asyncio.Task[None]] = {}
        """Those in progress, by path. A folder that is slow or locked holds up no other one."""
        journal.subscribe(self._recorded)

    async def ensure(self, plans: Iterable[PlannedAttachment]) -> None:
        """Restore the missing reservations in the folders from which *plans* get addresses.

        Raises RequestFailedError if one can't be restored: its address could be given again.
        """
        for path in {folder.path for plan in plans for folder in recorded.folders_of(plan)}:
            if path in self._restorations:
                await asyncio.shield(self._restorations[path])  # what was lost since then is still missing
            if self._missing(path):
                await asyncio.shield(self._restoration(path))  # the thread goes on in any case; DELs wait for its end

    def claim(self, key: SandboxKey, plan: PlannedAttachment, result: str) -> None:
        """Take note of the addresses in *result*, which an ADD of *plan* in sandbox *key* returned.

        Raises RequestFailedError if another sandbox holds one of them.
        """
        claimed = recorded.reservations_of(plan, result, key.container_id)
        for each in claimed:
            for holder, held in self._holders(each).items():
                if held != each:
                    raise self._conflict(each, holder, plan)
        self._add(key, claimed)

    def release(self, key: SandboxKey) -> None:
        """Forget the reservations of the sandbox: they are about to be freed. Then await ``restored``."""
        for each in self._of_sandboxes.pop(key, ()):
            holders = self._holders(each)
            holders.pop(key, None)
            if not holders:
                self._folders[each.folder].pop(each.address, None)
                if not self._folders[each.folder]:
                    del self._folders[each.folder]

    async def restored(self, plans: Iterable[PlannedAttachment]) -> None:
        """Return once no restoration for *plans* is in progress: a file restored after its DEL would be a leak."""
        paths = {folder.path for plan in plans for folder in recorded.folders_of(plan)}
        if running := [self._restorations[path] for path in paths if path in self._restorations]:
            await asyncio.wait(running)

    def _recorded(self, event: Event, sandbox: Sandbox | None) -> None:
        if isinstance(event.data, WorkerStarted):
            for loaded in self._journal.state.sandboxes.values():
                self._learn(loaded)
        elif sandbox is None:
            return
        elif sandbox.phase not in _LIVE:
            self.release(sandbox.key)
        elif isinstance(event.data, AttachCompleted) and sandbox.key not in self._of_sandboxes:
            self._learn(sandbox)

    def _learn(self, sandbox: Sandbox) -> None:
        """Add the reservations of *sandbox* if it is attached, and not since before the boot of the node."""
        if sandbox.phase is SandboxPhase.ATTACHED and sandbox.boot_id in ("", self._journal.boot_id):
            for attachment in sandbox.attachments:
                of_attachment = recorded.reservations_of(attachment.plan, attachment.result, sandbox.key.container_id)
                self._add(sandbox.key, of_attachment)

    def _add(self, key: SandboxKey, added: Iterable[Reservation]) -> None:
        for each in added:
            self._of_sandboxes.setdefault(key, set()).add(each)
            self._folders.setdefault(each.folder, {}).setdefault(each.address, {})[key] = each

    def _holders(self, reservation: Reservation) -> dict[SandboxKey, Reservation]:
        return self._folders.get(reservation.folder, {}).get(reservation.address, {})

    def _missing(self, path: str) -> dict[Reservation, SandboxKey]:
        """Return the reservations that have no file in the folder *path*, each with its sandbox."""
        held = self._folders.get(path)
        if not held:
            return {}
        try:
            names = os.listdir(path)
        except OSError:
            names = []  # if it is there, its restoration says what is wrong with it
        found: dict[Reservation, SandboxKey] = {}
        for address in held.keys() - names:
            key, reservation = next(iter(held[address].items()))
            found[reservation] = key
        return found

    def _restoration(self, path: str) -> asyncio.Task[None]:
        """Return the restoration of the folder *path* that is in progress; begin one if none is."""

        def ended(task: asyncio.Task[None]) -> None:
            del self._restorations[path]
            if not task.cancelled():
                task.exception()  # the ADDs that waited raise it

        if path not in self._restorations:
            restoration = asyncio.create_task(self._restore(path), context=Context())
            self._restorations[path] = restoration
            restoration.add_done_callback(ended)
        return self._restorations[path]

    async def _restore(self, path: str) -> None:
        missing = self._missing(path)  # by now: a DEL that began meanwhile frees its own
        if not missing:
            return
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            await asyncio.to_thread(recorded.restore, path, tuple(missing))
        except (OSError, reservations.BusyError) as error:
            raise self._not_restorable(*next(iter(missing.items())), error) from error
        seconds = loop.time() - started
        for key in dict.fromkeys(missing.values()):
            self._report(key, [each for each, holder in missing.items() if holder == key], seconds)

    def _report(self, key: SandboxKey, restored: list[Reservation], seconds: float) -> None:
        """Log what was restored, and record it in the sandbox's queue: an inspection there may record its drift."""
        log.warning(
            "reservation_restored",
            pod=self._pod(key),
            sandbox=key.container_id[:12],
            addresses=[each.address for each in restored],
            folder=restored[0].folder,
        )
        self._scheduler.enqueue(key.container_id, lambda: self._record(key, restored, seconds), _log_failure)

    async def _record(self, key: SandboxKey, restored: list[Reservation], seconds: float) -> None:
        sandbox = self._journal.state.sandboxes.get(key)
        if sandbox is None or sandbox.phase is not SandboxPhase.ATTACHED:
            return
        networks = {attachment.plan.ifname: attachment.plan.network for attachment in sandbox.attachments}
        drifts = tuple(recorded.missing(each, networks[each.ifname]) for each in restored if each.ifname in networks)
        others = tuple(each for each in sandbox.drifts if each not in drifts)
        observed = DriftObserved(ifname=key.ifname, pod=sandbox.pod, drifts=(*drifts, *others))
        repaired = DriftRepaired(request=RequestId(""), ifname=key.ifname, drifts=drifts, left=others, seconds=seconds)
        # Both at once: the reconciler then sees that there is nothing to repair.
        recordings = [self._journal.record(data, key.container_id, sandbox.intent) for data in (observed, repaired)]
        for recording in recordings:
            await recording

    def _conflict(self, claimed: Reservation, holder: SandboxKey, plan: PlannedAttachment) -> RequestFailedError:
        message = (
            f"host-local gave {claimed.ifname} of {plan.network} the address {claimed.address}, which pod "
            f"{self._pod(holder)} (container {holder.container_id[:12]}) holds: the reservation {claimed.path} was "
            "lost, and the worker restores it with the next ADD: try again"
        )
        return failed(
            ErrorClass.PLUGIN_FAILED, Phase.ADD, message, network=plan.network, ifname=plan.ifname, code=_TRY_AGAIN
        )

    def _not_restorable(
        self, reservation: Reservation, holder: SandboxKey, error: OSError | reservations.BusyError
    ) -> RequestFailedError:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        message = (
            f"pod {self._pod(holder)} (container {holder.container_id[:12]}) holds {reservation.address}, but the "
            f"reservation {reservation.path} is missing and can't be restored: {reason}; mend the file system"
        )
        return failed(ErrorClass.PLUGIN_FAILED, Phase.ADD, message, code=_TRY_AGAIN)

    def _pod(self, key: SandboxKey) -> str:
        sandbox = self._journal.state.sandboxes.get(key)
        return str(sandbox.pod) if sandbox is not None else "of no name"


def _log_failure(result: object) -> None:
    if isinstance(result, LedgerError):
        log.warning("restored_reservation_not_recorded", error=str(result))
    elif isinstance(result, Exception):
        log.error("restored_reservation_not_recorded", exc_info=result)
