"""GC: detach the sandboxes that the runtime no longer knows, then run GC of every plugin in use.

Only the runtime says what is valid; without its list nothing is freed (CNI specification 1.1, section 2, "GC"). The
runtime names a sandbox by the interface that it attached; for a plugin of a secondary network the list is expanded to
the interfaces of that network.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import structlog

from events.fold import Attachment, Sandbox, SandboxPhase
from events.ledger.ledger import LedgerError
from events.schema import (
    ErrorClass,
    Event,
    Failure,
    GcCompleted,
    GcFailed,
    GcRequested,
    Phase,
    PlannedAttachment,
)
from nodeworker.deadline import seconds_since, seconds_until
from nodeworker.errors import RequestFailedError, about, class_of, failed, subject_of
from nodeworker.journal.journal import Journal
from nodeworker.planning.planner import Planner
from nodeworker.planning.readiness import Readiness
from nodeworker.planning.resolve.netconf import RuntimeNetConf, parse_netconf
from nodeworker.plugins import chain
from nodeworker.plugins.api import Runners
from nodeworker.plugins.spec.versions import at_least
from nodeworker.sandboxes.answers import Answers, Reply, error_reply, reply_of
from nodeworker.sandboxes.detach import request_detach
from nodeworker.sandboxes.scheduler import Scheduler

log = structlog.get_logger(__name__)


class GarbageCollector:
    """Fulfils the intent of collecting garbage. *delegate_timeout*: seconds that the GC of one network may take."""

    def __init__(
        self,
        journal: Journal,
        scheduler: Scheduler,
        answers: Answers,
        runners: Runners,
        planner: Planner,
        readiness: Readiness,
        delegate_timeout: float,
    ) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self._answers = answers
        self._runners = runners
        self._planner = planner
        self._readiness = readiness
        self._delegate_timeout = delegate_timeout

    async def collect(self, intent: Event, request: GcRequested) -> Reply:
        """Fulfil *intent* and return the answer for the runtime."""
        try:
            conf = self._configuration(request)
            await self._readiness.wait(conf.readiness_file, seconds_until(request.deadline), Phase.GC)
            stale = () if request.valid is None else tuple(self._stale(conf.name, frozenset(request.valid)))
            failures = [failure for sandbox in stale if (failure := await self._detach(sandbox, intent)) is not None]
            if request.valid is not None:
                failures += [
                    failure async for failure in self._collect(conf, conf.plugin_folders(request.path), request.valid)
                ]
            seconds = seconds_since(intent.at)
            outcome = (
                GcFailed(request=request.request, failure=failures[0], seconds=seconds)
                if failures
                else GcCompleted(
                    request=request.request, detached=tuple(sandbox.key for sandbox in stale), seconds=seconds
                )
            )
        except RequestFailedError as error:
            outcome = GcFailed(request=request.request, failure=error.failure, seconds=seconds_since(intent.at))
        try:
            await self._journal.record(outcome, intent.sandbox, intent.id)
        except LedgerError as error:
            return error_reply(failed(class_of(error), Phase.GC, str(error)).failure, request.config)
        return reply_of(outcome, request.config)

    def _configuration(self, request: GcRequested) -> RuntimeNetConf:
        conf = parse_netconf(request.config, self._planner.node_defaults)
        if not at_least(conf.cni_version, "1.1.0"):
            raise failed(
                ErrorClass.UNSUPPORTED_VERSION,
                Phase.GC,
                f"GC needs cniVersion 1.1.0, and network {conf.name} is configured with {conf.cni_version}",
            )
        return conf

    def _stale(self, name: str, valid: frozenset[tuple[str, str]]) -> Iterator[Sandbox]:
        """Yield the sandboxes of the runtime's network *name* that are not on its list.

        A sandbox whose ADD is in progress is not stale: the runtime made its list before.
        """
        for key, sandbox in self._journal.state.sandboxes.items():
            settled = sandbox.phase not in (SandboxPhase.REQUESTED, SandboxPhase.PLANNED)
            if settled and tuple(key) not in valid and self._is_of(sandbox, name):
                yield sandbox

    def _is_of(self, sandbox: Sandbox, name: str) -> bool:
        if sandbox.request is None:
            return False
        try:
            return parse_netconf(sandbox.request.config, self._planner.node_defaults).name == name
        except RequestFailedError:
            return False

    async def _detach(self, sandbox: Sandbox, intent: Event) -> Failure | None:
        """Detach one sandbox as a DEL does; return why that failed, if it did."""
        key = sandbox.key
        now = self._journal.state.sandboxes.get(key)
        if now is None or now.intent != sandbox.intent:
            return None  # a DEL came meanwhile
        try:
            reply = await request_detach(self._journal, self._answers, sandbox, intent.id)
        except LedgerError as error:
            return about(
                subject_of(sandbox.pod, key.container_id), failed(class_of(error), Phase.GC, str(error)).failure
            )
        return reply.failure

    async def _collect(
        self, conf: RuntimeNetConf, plugin_folders: tuple[str, ...], runtime_valid: tuple[tuple[str, str], ...]
    ) -> AsyncIterator[Failure]:
        """Run GC of the default network and of every network in use, once each; yield the failures."""
        default = await self._default(conf, plugin_folders)
        names = {attachment.plan.cni_name for attachment in self._attachments()}
        for name in sorted(names | ({default.cni_name} if default is not None else set())):
            async with self._scheduler.collection(name):
                valid = self._valid(name, runtime_valid)  # right before it is used: it has all that is planned by now
                plans = (each.plan for each in self._attachments() if each.plan.cni_name == name)
                attachment = next(plans, default)
                if attachment is None:
                    continue  # its last sandbox was detached meanwhile
                target = chain.Target(container_id="", netns="", plugin_folders=plugin_folders)
                try:
                    await chain.gc(self._runners, attachment, target, valid, self._delegate_timeout)
                except chain.PluginFailedError as error:
                    log.warning("gc_failed", network=attachment.network, error=error.failure.message)
                    yield error.failure

    async def _default(self, conf: RuntimeNetConf, plugin_folders: tuple[str, ...]) -> PlannedAttachment | None:
        """Return the default network, which may have garbage even if no sandbox is left; None if it is unknown."""
        try:
            return await self._planner.default_attachment(conf, plugin_folders)
        except RequestFailedError as error:
            log.info("gc_without_default_network", error=error.failure.message)
            return None

    def _attachments(self) -> Iterator[Attachment]:
        for sandbox in self._journal.state.sandboxes.values():
            yield from sandbox.attachments

    def _valid(self, name: str, runtime_valid: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
        """Return what plugins must keep in the network *name*: (container ID, interface name).

        A container that is valid for the runtime and unknown to the ledger was attached before Plumbline was installed.
        Its interfaces are unknown, so it gets all names that occur in the network: an entry too many is freed with the
        container, an entry too few would free what a live pod uses.
        """
        valid: list[tuple[str, str]] = []
        known: set[str] = set()
        for key, sandbox in self._journal.state.sandboxes.items():
            known.add(key.container_id)
            valid += [(key.container_id, a.plan.ifname) for a in sandbox.attachments if a.plan.cni_name == name]
        names = {ifname for _, ifname in valid}
        foreign = [(container_id, ifname) for container_id, ifname in runtime_valid if container_id not in known]
        assumed = {(container_id, each) for container_id, ifname in foreign for each in (ifname, *names)}
        return [*valid, *sorted(assumed)]
