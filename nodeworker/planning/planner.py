"""Make the plan of a sandbox: look up what it needs, and make sure of what would spoil it.

The planning itself is pure (``nodeworker.planning.resolve``). To look things up changes nothing, so it may begin while
the ledger is still being told of the request; and the plan follows the request into the ledger without waiting for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec.structs import replace

from events.fold import SandboxKey
from events.schema import AttachPlanned, AttachRequested, ContainerId, ErrorClass, Event, EventId, Phase
from nodeworker.errors import failed
from nodeworker.journal.journal import Journal
from nodeworker.kernel.namespaces import inode, interfaces_present
from nodeworker.planning.cluster.gather import gather
from nodeworker.planning.cluster.source import Source
from nodeworker.planning.devices.source import DeviceSource, find_devices
from nodeworker.planning.readiness import Readiness
from nodeworker.planning.resolve.netconf import parse_netconf
from nodeworker.planning.resolve.plan import plan
from nodeworker.plugins import chain
from nodeworker.plugins.exec import Runners
from nodeworker.plugins.native import registry
from nodeworker.sandboxes.detach import planned_target
from nodeworker.settings import WorkerSection


class Planner:
    """Plans what requests ask for, with what *source*, *device_sources* and the node's disk say, and records it."""

    def __init__(
        self,
        journal: Journal,
        source: Source | None,
        runners: Runners,
        section: WorkerSection,
        readiness: Readiness,
        device_sources: Sequence[DeviceSource],
    ) -> None:
        self._journal = journal
        self._source = source
        self._runners = runners
        self._section = section
        self._readiness = readiness
        self._device_sources = device_sources
        self._begun: dict[EventId, asyncio.Task[asyncio.Task[None]]] = {}

    def begin(self, intent: Event, request: AttachRequested, wait: float) -> None:
        """Begin to plan for *intent*, which is to be on its way into the ledger at once; ``forget`` it in the end.

        That is done for a container that is new to the ledger only: the plan of another would be made for what is about
        to change.
        """
        known = SandboxKey(intent.sandbox, request.ifname) in self._journal.state.sandboxes
        if not known and not self._journal.expects(intent.sandbox):
            self._begun[intent.id] = asyncio.create_task(self._plan_soon(intent, request, wait))

    async def plan(self, intent: Event, request: AttachRequested, wait: float) -> asyncio.Task[None]:
        """Plan for *intent*, begun or not, and return the task by which the plan is recorded: see ``Journal.begin``.

        What is not ready on the node is waited for for *wait* seconds. The plan's plugins are there, and its interface
        names are free: what is not ours is never deleted. Raises RequestFailedError.
        """
        begun = self._begun.pop(intent.id, None)
        return await (self._plan(intent, request, wait) if begun is None else begun)

    def forget(self, intent: Event) -> None:
        """Let go of what was begun for *intent* and nobody asked for."""
        if (begun := self._begun.pop(intent.id, None)) is not None:
            begun.cancel()
            begun.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _plan_soon(self, intent: Event, request: AttachRequested, wait: float) -> asyncio.Task[None]:
        await asyncio.sleep(0)  # the request goes out first
        return await self._plan(intent, request, wait)

    async def _plan(self, intent: Event, request: AttachRequested, wait: float) -> asyncio.Task[None]:
        planned = await self._make(request, intent.sandbox, wait)
        return self._journal.begin(planned, intent.sandbox, intent.id)

    async def _make(self, request: AttachRequested, container_id: ContainerId, wait: float) -> AttachPlanned:
        conf = parse_netconf(request.config, self._section.network)
        await self._readiness.wait(conf.readiness_file, wait, Phase.RESOLVE)
        pod, networks = await gather(conf, request.pod, self._source)
        devices = await find_devices(conf, request.pod, pod, networks, self._device_sources)
        info_folder = self._section.devices.info_folder
        planned = plan(request, container_id, conf, pod, networks, devices, info_folder)
        if registry.unloaded(plugin for each in planned.attachments for plugin in each.plugins):
            # To import modules and look into their types takes tens of milliseconds, once: nothing for an event loop.
            planned = await asyncio.to_thread(self._with_ways, planned, container_id)
        else:
            planned = self._with_ways(planned, container_id)
        _require_free(planned, request)
        return replace(planned, netns_inode=inode(request.netns))

    def _with_ways(self, planned: AttachPlanned, container_id: ContainerId) -> AttachPlanned:
        """Return *planned* with the decision which plugins the worker itself stands in for; all of them are there."""
        registry.load(registry.unloaded(plugin for each in planned.attachments for plugin in each.plugins))
        ways = (registry.choose(attachment.plugins, self._section.native) for attachment in planned.attachments)
        attachments = (
            replace(each, native=way if any(way) else ()) for each, way in zip(planned.attachments, ways, strict=True)
        )
        decided = replace(planned, attachments=tuple(attachments))
        for attachment in decided.attachments:
            chain.require(self._runners, attachment, planned_target(container_id, decided))
        return decided


def _require_free(planned: AttachPlanned, request: AttachRequested) -> None:
    """Raise RequestFailedError (interface_exists) for an interface name that is taken."""
    names = {attachment.ifname for attachment in planned.attachments}
    taken = interfaces_present(request.netns, names, Phase.RESOLVE)
    for attachment in planned.attachments:
        if attachment.ifname in taken:
            raise failed(
                ErrorClass.INTERFACE_EXISTS,
                Phase.RESOLVE,
                f"interface {attachment.ifname} for network {attachment.network} of pod {request.pod} exists in "
                f"{request.netns} already and is not Plumbline's: remove it, or ask for another name",
                network=attachment.network,
                ifname=attachment.ifname,
            )
