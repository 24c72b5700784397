"""GC: detach what the runtime no longer knows, then let every plugin free what belongs to nobody.

The list of what is valid comes from the runtime alone; without one nothing is freed (CNI specification 1.1, section 2,
"GC"). The runtime names sandboxes by the interface it attached; for a plugin of a secondary network the list is
expanded to the interfaces of that network.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeAlias

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
from nodeworker.errors import RequestFailedError, class_of, failed
from nodeworker.journal.journal import Journal
from nodeworker.planning.readiness import Readiness
from nodeworker.planning.resolve.netconf import NetConf, parse_netconf
from nodeworker.plugins import chain
from nodeworker.plugins.exec import Runners
from nodeworker.plugins.spec.versions import at_least
from nodeworker.sandboxes.answers import Answers, Reply, refusal, reply_of
from nodeworker.sandboxes.ask_detach import ask_detach
from nodeworker.sandboxes.collections_under_way import CollectionsUnderWay
from nodeworker.settings import WorkerSection

log = structlog.get_logger(__name__)

DefaultNetwork: TypeAlias = Callable[[NetConf, tuple[str, ...]], Awaitable[PlannedAttachment]]
"""Looks up the default network of a configuration. Raises RequestFailedError."""


class GarbageCollector:
    """Fulfils the intent of collecting garbage."""

    def __init__(
        self,
        journal: Journal,
        answers: Answers,
        runners: Runners,
        section: WorkerSection,
        readiness: Readiness,
        default_network: DefaultNetwork,
        collections: CollectionsUnderWay,
    ) -> None:
        self._journal = journal
        self._answers = answers
        self._runners = runners
        self._section = section
        self._readiness = readiness
        self._default_network = default_network
        self._collections = collections

    async def collect(self, event: Event, request: GcRequested) -> Reply:
        """Fulfil the intent *event* and return the answer for the runtime."""
        try:
            conf = self._configuration(request)
            await self._readiness.wait(conf.readiness_file, seconds_until(request.deadline), Phase.GC)
            stale = () if request.valid is None else tuple(self._stale(conf.name, frozenset(request.valid)))
            failures = [failure for sandbox in stale if (failure := await self._detach(sandbox, event)) is not None]
            if request.valid is not None:
                failures += [
                    failure async for failure in self._collect(conf, conf.plugin_folders(request.path), request.valid)
                ]
            seconds = seconds_since(event.at)
            outcome = (
                GcFailed(request=request.request, failure=failures[0], seconds=seconds)
                if failures
                else GcCompleted(
                    request=request.request, detached=tuple(sandbox.key for sandbox in stale), seconds=seconds
                )
            )
        except RequestFailedError as error:
            outcome = GcFailed(request=request.request, failure=error.failure, seconds=seconds_since(event.at))
        try:
            await self._journal.record(outcome, event.sandbox, event.id)
        except LedgerError as error:
            return refusal(failed(class_of(error), Phase.GC, str(error)).failure, request.config)
        return reply_of(outcome, request.config)

    def _configuration(self, request: GcRequested) -> NetConf:
        conf = parse_netconf(request.config, self._section.network)
        if not at_least(conf.cni_version, "1.1.0"):
            raise failed(
                ErrorClass.UNSUPPORTED_VERSION,
                Phase.GC,
                f"GC needs cniVersion 1.1.0, and network {conf.name} is configured with {conf.cni_version}",
            )
        return conf

    def _stale(self, name: str, valid: frozenset[tuple[str, str]]) -> Iterator[Sandbox]:
        """Yield the sandboxes of the runtime's network *name* that it no longer holds valid.

        One whose ADD is under way is not stale: the runtime made its list before.
        """
        for key, sandbox in self._journal.state.sandboxes.items():
            settled = sandbox.phase not in (SandboxPhase.REQUESTED, SandboxPhase.PLANNED)
            if settled and tuple(key) not in valid and self._is_of(sandbox, name):
                yield sandbox

    def _is_of(self, sandbox: Sandbox, name: str) -> bool:
        if sandbox.request is None:
            return False
        try:
            return parse_netconf(sandbox.request.config, self._section.network).name == name
        except RequestFailedError:
            return False

    async def _detach(self, sandbox: Sandbox, event: Event) -> Failure | None:
        """Detach one sandbox the way a DEL does; return why that failed, if it did."""
        key = sandbox.key
        now = self._journal.state.sandboxes.get(key)
        if now is None or now.intent != sandbox.intent:
            return None  # a DEL came meanwhile
        try:
            reply = await ask_detach(self._journal, self._answers, sandbox, event.id)
        except LedgerError as error:
            return failed(class_of(error), Phase.GC, str(error)).failure
        return reply.failure

    async def _collect(
        self, conf: NetConf, folders: tuple[str, ...], runtime_valid: tuple[tuple[str, str], ...]
    ) -> AsyncIterator[Failure]:
        """Run GC of every delegate in use, and of the default network, each network once; yield what failed."""
        default = await self._default(conf, folders)
        names = {attachment.plan.cni_name for attachment in self._attachments()}
        for name in sorted(names | ({default.cni_name} if default is not None else set())):
            async with self._collections.of(name):
                valid = self._valid(name, runtime_valid)  # right before it is used: what is planned by now is kept
                plans = (each.plan for each in self._attachments() if each.plan.cni_name == name)
                attachment = next(plans, default)
                if attachment is None:
                    continue  # its last sandbox was detached meanwhile
                target = chain.Target(container_id="", netns="", path=folders)
                try:
                    await chain.gc(self._runners, attachment, target, valid, self._section.delegate_timeout)
                except chain.DelegateError as error:
                    log.warning("gc_failed", network=attachment.network, error=error.failure.message)
                    yield error.failure

    async def _default(self, conf: NetConf, folders: tuple[str, ...]) -> PlannedAttachment | None:
        """Return the default network, which may have garbage also when no sandbox is left; None if nobody knows it."""
        try:
            return await self._default_network(conf, folders)
        except RequestFailedError as error:
            log.info("gc_without_default_network", error=error.failure.message)
            return None

    def _attachments(self) -> Iterator[Attachment]:
        for sandbox in self._journal.state.sandboxes.values():
            yield from sandbox.attachments

    def _valid(self, name: str, runtime_valid: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
        """Return what is to be kept in the network *name*: (container ID, interface name).

        A container that the runtime holds valid and the ledger does not know was attached before Plumbline came. Nobody
        knows its interfaces, so all names that occur in a network are taken for its own: what is kept for nothing is
        freed with the container, what is freed wrongly is a live pod's.
        """
        valid: list[tuple[str, str]] = []
        known: set[str] = set()
        for key, sandbox in self._journal.state.sandboxes.items():
            known.add(key.container_id)
            valid += [(key.container_id, a.plan.ifname) for a in sandbox.attachments if a.plan.cni_name == name]
        names = {ifname for _, ifname in valid}
        foreign = [(container_id, ifname) for container_id, ifname in runtime_valid if container_id not in known]
        kept = {(container_id, each) for container_id, ifname in foreign for each in (ifname, *names)}
        return [*valid, *sorted(kept)]
