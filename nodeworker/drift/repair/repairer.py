"""Fulfil the order to repair a sandbox: look, make again what is gone, mend what differs, and look again.

What is on record is the measure, not the order: by the time of its turn the node may be another. An order that does not
rest on the newest observation is void. One that was cut anywhere is simply begun again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

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
    IfName,
    Phase,
    RepairRequested,
)
from nodeworker.deadline import seconds_since
from nodeworker.drift.expected import OF_THE_NODE
from nodeworker.drift.inspector import Inspector, Look
from nodeworker.drift.repair.in_place import Refused, mend, rename_port
from nodeworker.drift.repair.reattach import as_recorded, obstacle
from nodeworker.errors import RequestFailedError, failed
from nodeworker.journal.journal import Journal
from nodeworker.metrics import WorkerMetrics
from nodeworker.planning.resolve.default_route import adjusted, wanted
from nodeworker.plugins import chain, device_info
from nodeworker.plugins.exec import Runners, type_of
from nodeworker.plugins.spec import results
from nodeworker.sandboxes import default_route
from nodeworker.sandboxes.detach import target_of
from nodeworker.settings import WorkerSection

log = structlog.get_logger(__name__)

_MOVE_ROUTES = frozenset({"sbr", "vrf"})
"""Plugins that put what their interface leads to into tables of their own, which no result tells."""
_TAKE_ROUTES = frozenset({DriftKind.ADDRESS_MISSING, DriftKind.ROUTE_MISSING})


class Repairer:
    """Repairs sandboxes."""

    def __init__(
        self, journal: Journal, inspector: Inspector, runners: Runners, section: WorkerSection, metrics: WorkerMetrics
    ) -> None:
        self._journal = journal
        self._inspector = inspector
        self._runners = runners
        self._section = section
        self._metrics = metrics

    async def repair(self, event: Event, order: RepairRequested) -> DriftRepaired | DriftRepairFailed:
        """Fulfil *order*.

        Raises RequestFailedError: evidence_changed where it rests on what is no longer so, namespace_invalid where
        there is nothing left to be repaired.
        """
        key = SandboxKey(event.sandbox, order.ifname)
        sandbox = self._journal.state.sandboxes.get(key)
        if sandbox is None or sandbox.phase is not SandboxPhase.ATTACHED or sandbox.plan is None:
            raise _void(event, "the sandbox is not attached any more")
        if not event.cause or event.cause != sandbox.drift:
            raise _void(event, f"pod {sandbox.pod}: it was seen otherwise since")
        look = await self._inspector.see(sandbox, Phase.REPAIR)
        asked = {_identity(drift) for drift in order.drifts}
        refused = await self._make_again(sandbox, [drift for drift in look.drifts if _identity(drift) in asked], look)
        look = await self._inspector.see(sandbox, Phase.REPAIR)
        names = {each.ifname for each in order.drifts if _needs_remake(each, sandbox)}
        stopped = {each.drift.ifname for each in refused}
        rest = [
            drift
            for drift in look.drifts
            if drift.ifname not in stopped and (_identity(drift) in asked or drift.ifname in names)
        ]
        if rest:
            netns, inode = sandbox.plan.netns, sandbox.plan.netns_inode
            refused += await self._inspector.on_thread(lambda: mend(netns, look.wanted, look.seen, rest, inode))
            look = await self._inspector.see(sandbox, Phase.REPAIR)
        left = look.drifts
        unmet = [drift for drift in left if _identity(drift) in asked]
        seconds = seconds_since(event.at)
        if not unmet:
            return DriftRepaired(
                request=order.request, ifname=order.ifname, drifts=order.drifts, left=left, seconds=seconds
            )
        return DriftRepairFailed(
            request=order.request,
            ifname=order.ifname,
            failure=_failure(sandbox, unmet, refused).failure,
            left=left,
            seconds=seconds,
        )

    async def _make_again(self, sandbox: Sandbox, drifts: Sequence[Drift], look: Look) -> list[Refused]:
        """Make the interfaces again that *drifts* say are gone, in the plan's order; return those that could not be."""
        missing = {drift.ifname: drift for drift in drifts if _needs_remake(drift, sandbox)}
        refused: list[Refused] = []
        for attachment in sandbox.attachments:
            drift = missing.get(attachment.plan.ifname)
            if drift is None:
                continue
            if reason := _parent_missing(look.drifts, drift, sandbox) or obstacle(attachment):
                refused.append(Refused(drift=drift, error_class=ErrorClass.NOT_REPAIRABLE, reason=reason))
                continue
            try:
                await self._make_one_again(sandbox, attachment)
            except RequestFailedError as error:
                refused.append(
                    Refused(drift=drift, error_class=error.failure.error_class, reason=error.failure.message)
                )
        if missing and not refused:
            refused += await self._give_default_routes(sandbox, next(iter(missing.values())))
        return refused

    async def _make_one_again(self, sandbox: Sandbox, attachment: Attachment) -> None:
        """Have the plugins undo what is left of the interface, and make it. Raises RequestFailedError."""
        target, seconds = target_of(sandbox), self._section.delegate_timeout
        recorded = adjusted(sandbox.attachments, attachment)
        try:
            plan = as_recorded(attachment.plan, recorded)
        except results.ResultError as error:
            message = f"{attachment.plan.ifname}: what ADD returned can't be read: {error}"
            raise failed(ErrorClass.NOT_REPAIRABLE, Phase.REPAIR, message) from error
        try:
            self._metrics.runs_done("DEL", await chain.delete(self._runners, plan, target, recorded, seconds))
        except chain.DelegateError as error:  # the interface is gone: some plugins mind, and the ADD shows what matters
            self._metrics.runs_done("DEL", error.runs)
            log.info("remake_undo_refused", pod=str(sandbox.pod), ifname=plan.ifname, error=error.failure.message)
        await device_info.provide(plan)
        try:
            _, runs = await chain.add(self._runners, plan, target, seconds)
        except chain.DelegateError as error:
            self._metrics.runs_done("ADD", error.runs)
            raise
        self._metrics.runs_done("ADD", runs)
        await self._restore_port(sandbox, attachment)

    async def _restore_port(self, sandbox: Sandbox, attachment: Attachment) -> None:
        """Let the node's end have the name that it was recorded under: CHECK and people look for it."""
        assert sandbox.plan is not None
        result = results.decode(attachment.result, attachment.plan.cni_version)
        plan, netns = attachment.plan, sandbox.plan.netns
        ports = [each for each in result.interfaces if not each.sandbox and each.name.startswith("veth")]
        if len(ports) == 1:
            port = ports[0]
            await self._inspector.on_thread(lambda: rename_port(netns, plan.ifname, port.name, port.mac))

    async def _give_default_routes(self, sandbox: Sandbox, drift: Drift) -> list[Refused]:
        """Give the pod's default routes back to the attachments that claim them."""
        assert sandbox.plan is not None
        netns = sandbox.plan.netns
        try:
            for route in wanted(sandbox.attachments):
                await self._inspector.on_thread(lambda route=route: default_route.move(netns, route, sandbox.pod))
        except RequestFailedError as error:
            return [Refused(drift=drift, error_class=error.failure.error_class, reason=error.failure.message)]
        return []


def _identity(drift: Drift) -> Drift:
    """Return *drift* without what was found, which may be another wrong thing by now; a foreign address is itself."""
    return drift if drift.kind is DriftKind.ADDRESS_FOREIGN else replace(drift, found="")


def _needs_remake(drift: Drift, sandbox: Sandbox) -> bool:
    """Return whether it takes the plugins to put *drift* right: they make bridges, but no other parents."""
    if drift.kind is DriftKind.LINK_MISSING:
        return True
    if drift.kind in _TAKE_ROUTES:
        return not _MOVE_ROUTES.isdisjoint(_kinds(sandbox, drift.ifname))
    return drift.kind is DriftKind.PARENT_MISSING and not _rests_on_the_node(sandbox, drift.ifname)


def _rests_on_the_node(sandbox: Sandbox, ifname: IfName) -> bool:
    return any(kind in OF_THE_NODE for kind in _kinds(sandbox, ifname)[:1])


def _kinds(sandbox: Sandbox, ifname: IfName) -> list[str]:
    """Return the types of the plugins of the attachment *ifname*, in the order of its chain."""
    plans = (attachment.plan for attachment in sandbox.attachments)
    return [type_of(plugin) for plan in plans if plan.ifname == ifname for plugin in plan.plugins]


def _parent_missing(drifts: Collection[Drift], drift: Drift, sandbox: Sandbox) -> str:
    """Return why *drift* can't be put right as long as the node lacks something, or an empty text."""
    if not _rests_on_the_node(sandbox, drift.ifname):
        return ""
    for each in drifts:
        if each.ifname == drift.ifname and each.kind is DriftKind.PARENT_MISSING:
            return f"{each.expected}, which it rests on, is missing on the node: make it again"
    return ""


def _failure(sandbox: Sandbox, unmet: Sequence[Drift], refused: Sequence[Refused]) -> RequestFailedError:
    """Return the failure that tells of all that was not put right."""
    reasons = {_identity(each.drift): each for each in refused}
    first = reasons.get(_identity(unmet[0]))
    told = [
        f"{drift.ifname} of {drift.network} ({drift.kind.value.replace('_', ' ')}"
        f"{f': {drift.expected}' if drift.expected else ''}{f', found {drift.found}' if drift.found else ''}): "
        + (reasons[_identity(drift)].reason if _identity(drift) in reasons else "it is so again or still")
        for drift in unmet
    ]
    classes = {reasons[_identity(drift)].error_class for drift in unmet if _identity(drift) in reasons}
    error_class = ErrorClass.NOT_REPAIRABLE if classes == {ErrorClass.NOT_REPAIRABLE} else ErrorClass.PLUGIN_FAILED
    if first is not None and error_class is not ErrorClass.NOT_REPAIRABLE:
        error_class = first.error_class
    return failed(
        error_class,
        Phase.REPAIR,
        f"pod {sandbox.pod}: not all could be put right: {'; '.join(told)}",
        network=unmet[0].network,
        ifname=unmet[0].ifname,
    )


def _void(event: Event, reason: str) -> RequestFailedError:
    return failed(
        ErrorClass.EVIDENCE_CHANGED,
        Phase.REPAIR,
        f"the repair of {event.sandbox[:12]} is void: {reason}; if something differs, another one is asked for",
    )
