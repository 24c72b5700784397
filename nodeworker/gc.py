"""GC: detach what the runtime no longer knows, then let every plugin free what belongs to nobody.

The list of what is valid comes from the runtime alone; without one nothing is freed (CNI specification 1.1, section 2,
"GC"). The runtime names sandboxes by the interface it attached; for a plugin of a secondary network the list is
expanded to the interfaces of that network.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import structlog

from events.fold import Sandbox, SandboxPhase
from events.ledger import LedgerError
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
from nodeworker.answers import Answers, Reply, refusal, reply_of
from nodeworker.ask_detach import ask_detach
from nodeworker.delegates import chain
from nodeworker.delegates.exec import Runners
from nodeworker.delegates.versions import at_least
from nodeworker.errors import RequestFailedError, class_of, failed
from nodeworker.patience import seconds_since, seconds_until
from nodeworker.readiness import Readiness
from nodeworker.recorder import Recorder
from nodeworker.resolve.netconf import NetConf, parse_netconf
from nodeworker.settings import WorkerSection

log = structlog.get_logger(__name__)


class GarbageCollector:
    """Fulfils the intent of collecting garbage."""

    def __init__(
        self,
        recorder: Recorder,
        answers: Answers,
        runners: Runners,
        section: WorkerSection,
        readiness: Readiness,
    ) -> None:
        self._recorder = recorder
        self._answers = answers
        self._runners = runners
        self._section = section
        self._readiness = readiness

    async def collect(self, event: Event, request: GcRequested) -> Reply:
        """Fulfil the intent *event* and return the answer for the runtime."""
        try:
            conf = self._configuration(request)
            await self._readiness.wait(conf.readiness_file, seconds_until(request.deadline), Phase.GC)
            stale = () if request.valid is None else tuple(self._stale(conf.name, frozenset(request.valid)))
            failures = [failure for sandbox in stale if (failure := await self._detach(sandbox, event)) is not None]
            if request.valid is not None:
                failures += [
                    failure async for failure in self._collect(conf.plugin_folders(request.path), request.valid)
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
            await self._recorder.record(outcome, event.sandbox, event.id)
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
        for key, sandbox in self._recorder.state.sandboxes.items():
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
        now = self._recorder.state.sandboxes.get(key)
        if now is None or now.intent != sandbox.intent:
            return None  # a DEL came meanwhile
        try:
            reply = await ask_detach(self._recorder, self._answers, sandbox, event.id)
        except LedgerError as error:
            return failed(class_of(error), Phase.GC, str(error)).failure
        return reply.failure

    async def _collect(
        self, folders: tuple[str, ...], runtime_valid: tuple[tuple[str, str], ...]
    ) -> AsyncIterator[Failure]:
        """Run GC of every delegate in use, each network once; yield what failed."""
        for attachment, valid in self._networks(runtime_valid):
            target = chain.Target(container_id="", netns="", path=folders)
            try:
                await chain.gc(self._runners, attachment, target, valid, self._section.delegate_timeout)
            except chain.DelegateError as error:
                log.warning("gc_failed", network=attachment.network, error=error.failure.message)
                yield error.failure

    def _networks(
        self, runtime_valid: tuple[tuple[str, str], ...]
    ) -> Iterator[tuple[PlannedAttachment, list[tuple[str, str]]]]:
        """Yield each network in use, and what is valid in it.

        A container that the runtime holds valid and the ledger does not know was attached before Plumbline came. Nobody
        knows its interfaces, so all names that occur in a network are taken for its own: what is kept for nothing is
        freed with the container, what is freed wrongly is a live pod's.
        """
        networks: dict[str, tuple[PlannedAttachment, list[tuple[str, str]]]] = {}
        known: set[str] = set()
        for key, sandbox in self._recorder.state.sandboxes.items():
            known.add(key.container_id)
            for attachment in sandbox.attachments:
                _, valid = networks.setdefault(attachment.plan.cni_name, (attachment.plan, []))
                valid.append((key.container_id, attachment.plan.ifname))
        foreign = [(container_id, ifname) for container_id, ifname in runtime_valid if container_id not in known]
        for attachment, valid in networks.values():
            names = {ifname for _, ifname in valid}
            kept = {(container_id, name) for container_id, ifname in foreign for name in (ifname, *names)}
            yield attachment, [*valid, *sorted(kept)]
