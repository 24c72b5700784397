"""Carry out the command to repair a sandbox: attach missing interfaces again, then repair the others in place.

The recorded state is the target, not the command, because the node may have changed since. A command that does not
rest on the newest observation is void. A repair that was interrupted at any point starts again from the beginning.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import structlog
from msgspec.structs import replace

from events.fold import Attachment, Sandbox, SandboxKey, SandboxPhase
from events.schema import (
    Drift,
    DriftKind,
    DriftRepaired,
    DriftRepairFailed,
    ErrorClass,
    Event,
    Failure,
    IfName,
    Phase,
    RepairRequested,
)
from nodeworker.deadline import seconds_since
from nodeworker.drift.expected import OF_THE_NODE
from nodeworker.drift.files import FILE_DRIFTS, other_holder
from nodeworker.drift.inspector import Inspection, Inspector
from nodeworker.drift.repair.files import restore_files
from nodeworker.drift.repair.in_place import NotRepaired, rename_port, repair_in_place
from nodeworker.drift.repair.reattach import obstacle, plan_as_recorded
from nodeworker.errors import RequestFailedError, about, failed, subject_of
from nodeworker.journal.journal import Journal
from nodeworker.metrics import WorkerMetrics
from nodeworker.planning.resolve.route_claims import adjusted_result, claimed_routes
from nodeworker.plugins import chain, device_info
from nodeworker.plugins.api import Runners
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.conflist import type_of
from nodeworker.sandboxes import default_route
from nodeworker.sandboxes.detach import add_target

log = structlog.get_logger(__name__)

_MOVE_ROUTES = frozenset({"sbr", "vrf"})
"""Plugins that move the routes of their interface into separate tables, which no result lists."""
_NEED_ROUTES = frozenset({DriftKind.ADDRESS_MISSING, DriftKind.ROUTE_MISSING})


class Repairer:
    """Repairs sandboxes."""

    def __init__(
        self,
        journal: Journal,
        inspector: Inspector,
        runners: Runners,
        delegate_timeout: float,
        metrics: WorkerMetrics,
    ) -> None:
        """*delegate_timeout*: seconds for the DEL, and for the ADD, of one attachment."""
        self._journal = journal
        self._inspector = inspector
        self._runners = runners
        self._delegate_timeout = delegate_timeout
        self._metrics = metrics

    async def repair(self, intent: Event, command: RepairRequested) -> DriftRepaired | DriftRepairFailed:
        """Carry out *command* and return its outcome.

        Raises RequestFailedError: evidence_changed if the sandbox changed since the observation that the command rests
        on, namespace_invalid if the namespace is gone.
        """
        key = SandboxKey(intent.sandbox, command.ifname)
        sandbox = self._journal.state.sandboxes.get(key)
        if sandbox is None or sandbox.phase is not SandboxPhase.ATTACHED or sandbox.plan is None:
            raise _void(intent, "the sandbox is no longer attached")
        if not intent.cause or intent.cause != sandbox.drift:
            raise _void(intent, "a newer observation differs")
        inspection = await self._inspector.inspect_present(sandbox, Phase.REPAIR)
        requested = {_identity(drift) for drift in command.drifts}
        confirmed = [drift for drift in inspection.drifts if _identity(drift) in requested]
        not_repaired = await self._restore_files(confirmed, inspection)
        free = [drift for drift in confirmed if drift not in {each.drift for each in not_repaired}]
        not_repaired += await self._reattach(sandbox, free, inspection)
        inspection = await self._inspector.inspect_present(sandbox, Phase.REPAIR)
        reattached = {each.ifname for each in command.drifts if _needs_reattach(each, sandbox)}
        blocked = {each.drift.ifname for each in not_repaired if each.drift.kind is not DriftKind.DEVICE_INFO_CHANGED}
        rest = [
            drift
            for drift in inspection.drifts
            if drift.ifname not in blocked
            and drift.kind not in FILE_DRIFTS
            and (_identity(drift) in requested or drift.ifname in reattached)
        ]
        if rest:
            netns, inode, before = sandbox.plan.netns, sandbox.plan.netns_inode, inspection
            not_repaired += await self._inspector.on_thread(
                lambda: repair_in_place(netns, before.expected, before.snapshot, rest, inode)
            )
            inspection = await self._inspector.inspect_present(sandbox, Phase.REPAIR)
        left = inspection.drifts
        unmet = [drift for drift in left if _identity(drift) in requested]
        seconds = seconds_since(intent.at)
        if not unmet:
            return DriftRepaired(
                request=command.request, ifname=command.ifname, drifts=command.drifts, left=left, seconds=seconds
            )
        return DriftRepairFailed(
            request=command.request,
            ifname=command.ifname,
            failure=about(subject_of(sandbox.pod, key.container_id), _failure(unmet, not_repaired)),
            left=left,
            seconds=seconds,
        )

    async def _restore_files(self, drifts: Sequence[Drift], inspection: Inspection) -> list[NotRepaired]:
        """Restore the files of *drifts*; return what can't be repaired.

        If another pod has the address of an interface, that is every drift of the interface: an interface that is
        attached again would take the address from the other pod.
        """
        of_files = [drift for drift in drifts if drift.kind in FILE_DRIFTS]
        if not of_files:
            return []
        files, sandboxes = inspection.files, dict(self._journal.state.sandboxes)
        not_repaired = await self._inspector.on_thread(
            lambda: restore_files(files, of_files, partial(other_holder, sandboxes))
        )
        foreign = {each.drift.ifname: each for each in not_repaired if each.error_class is ErrorClass.NOT_REPAIRABLE}
        others = [drift for drift in drifts if drift.kind not in FILE_DRIFTS and drift.ifname in foreign]
        return [*not_repaired, *(replace(foreign[drift.ifname], drift=drift) for drift in others)]

    async def _reattach(self, sandbox: Sandbox, drifts: Sequence[Drift], inspection: Inspection) -> list[NotRepaired]:
        """Attach the interfaces of *drifts* that need it again, in the plan's order; return those that failed."""
        missing = {drift.ifname: drift for drift in drifts if _needs_reattach(drift, sandbox)}
        not_repaired: list[NotRepaired] = []
        for attachment in sandbox.attachments:
            drift = missing.get(attachment.plan.ifname)
            if drift is None:
                continue
            if reason := _parent_missing(inspection.drifts, drift, sandbox) or obstacle(attachment):
                not_repaired.append(NotRepaired(drift, ErrorClass.NOT_REPAIRABLE, reason))
                continue
            try:
                await self._reattach_one(sandbox, attachment)
            except RequestFailedError as error:
                not_repaired.append(_of_failure(drift, error))
        if missing and not not_repaired:
            not_repaired += await self._restore_default_routes(sandbox, next(iter(missing.values())))
        return not_repaired

    async def _reattach_one(self, sandbox: Sandbox, attachment: Attachment) -> None:
        """Run DEL of the plugins, for what is left of the interface, then ADD. Raises RequestFailedError."""
        target, seconds = add_target(sandbox), self._delegate_timeout
        recorded = adjusted_result(sandbox.attachments, attachment)
        try:
            plan = plan_as_recorded(attachment.plan, recorded)
        except results.ResultError as error:
            message = f"{attachment.plan.ifname}: what ADD returned can't be read: {error}"
            raise failed(ErrorClass.NOT_REPAIRABLE, Phase.REPAIR, message) from error
        try:
            self._metrics.runs_done("DEL", await chain.delete(self._runners, plan, target, recorded, seconds))
        except chain.PluginFailedError as error:
            # Some plugins fail because the interface is gone: ADD shows whether that matters.
            self._metrics.runs_done("DEL", error.runs)
            log.info("remake_undo_refused", pod=str(sandbox.pod), ifname=plan.ifname, error=error.failure.message)
        await device_info.provide(plan)
        try:
            _, runs = await chain.add(self._runners, plan, target, seconds)
        except chain.PluginFailedError as error:
            self._metrics.runs_done("ADD", error.runs)
            raise
        self._metrics.runs_done("ADD", runs)
        await self._restore_port(sandbox, attachment)

    async def _restore_port(self, sandbox: Sandbox, attachment: Attachment) -> None:
        """Give the node's end of a veth pair its recorded name: CHECK and people look for it."""
        assert sandbox.plan is not None
        result = results.decode(attachment.result, attachment.plan.cni_version)
        plan, netns = attachment.plan, sandbox.plan.netns
        ports = [each for each in result.interfaces if not each.sandbox and each.name.startswith("veth")]
        if len(ports) == 1:
            port = ports[0]
            await self._inspector.on_thread(lambda: rename_port(netns, plan.ifname, port.name, port.mac))

    async def _restore_default_routes(self, sandbox: Sandbox, drift: Drift) -> list[NotRepaired]:
        """Move the pod's default routes back to the attachments that claim them."""
        assert sandbox.plan is not None
        netns = sandbox.plan.netns
        try:
            for route in claimed_routes(sandbox.attachments):
                await self._inspector.on_thread(lambda route=route: default_route.move(netns, route))
        except RequestFailedError as error:
            return [_of_failure(drift, error)]
        return []


def _of_failure(drift: Drift, error: RequestFailedError) -> NotRepaired:
    return NotRepaired(drift, error.failure.error_class, error.failure.message)


def _identity(drift: Drift) -> Drift:
    """Return *drift* without the found value, which may have changed. A foreign address is its found value."""
    return drift if drift.kind is DriftKind.ADDRESS_FOREIGN else replace(drift, found="")


def _needs_reattach(drift: Drift, sandbox: Sandbox) -> bool:
    """Return whether only the plugins can repair *drift*. Plugins create bridges, but no other parents."""
    if drift.kind is DriftKind.LINK_MISSING:
        return True
    if drift.kind in _NEED_ROUTES:
        return not _MOVE_ROUTES.isdisjoint(_kinds(sandbox, drift.ifname))
    return drift.kind is DriftKind.PARENT_MISSING and not _rests_on_the_node(sandbox, drift.ifname)


def _rests_on_the_node(sandbox: Sandbox, ifname: IfName) -> bool:
    return any(kind in OF_THE_NODE for kind in _kinds(sandbox, ifname)[:1])


def _kinds(sandbox: Sandbox, ifname: IfName) -> list[str]:
    """Return the types of the plugins of the attachment *ifname*, in the order of its chain."""
    plans = (attachment.plan for attachment in sandbox.attachments)
    return [type_of(plugin) for plan in plans if plan.ifname == ifname for plugin in plan.plugins]


def _parent_missing(drifts: Collection[Drift], drift: Drift, sandbox: Sandbox) -> str:
    """Return which missing parent on the node prevents the repair of *drift*, or an empty text."""
    if not _rests_on_the_node(sandbox, drift.ifname):
        return ""
    for each in drifts:
        if each.ifname == drift.ifname and each.kind is DriftKind.PARENT_MISSING:
            return f"its parent {each.expected} is missing on the node: create it again"
    return ""


def _failure(unmet: Sequence[Drift], not_repaired: Sequence[NotRepaired]) -> Failure:
    """Return the failure that lists all drift that was not repaired."""
    reasons = {_identity(each.drift): each for each in not_repaired}
    first = reasons.get(_identity(unmet[0]))
    sentences = [
        f"{drift.ifname} of {drift.network} ({drift.kind.value.replace('_', ' ')}"
        f"{f': {drift.expected}' if drift.expected else ''}{f', found {drift.found}' if drift.found else ''}): "
        + (reasons[_identity(drift)].reason if _identity(drift) in reasons else "the drift is still there, or again")
        for drift in unmet
    ]
    classes = {reasons[_identity(drift)].error_class for drift in unmet if _identity(drift) in reasons}
    error_class = ErrorClass.NOT_REPAIRABLE if classes == {ErrorClass.NOT_REPAIRABLE} else ErrorClass.PLUGIN_FAILED
    if first is not None and error_class is not ErrorClass.NOT_REPAIRABLE:
        error_class = first.error_class
    return failed(
        error_class,
        Phase.REPAIR,
        f"not all drift could be repaired: {'; '.join(sentences)}",
        network=unmet[0].network,
        ifname=unmet[0].ifname,
    ).failure


def _void(intent: Event, reason: str) -> RequestFailedError:
    return failed(
        ErrorClass.EVIDENCE_CHANGED,
        Phase.REPAIR,
        f"the repair of {intent.sandbox[:12]} is void: {reason}; a new repair is requested if drift remains",
    )
