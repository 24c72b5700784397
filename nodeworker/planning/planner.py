"""Make the plan of a sandbox: look up what it needs, and check what would prevent it.

The planning itself is pure (``nodeworker.planning.resolve``). Looking things up changes nothing on the node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec.structs import replace

from events.schema import AttachPlanned, AttachRequested, ContainerId, ErrorClass, IfName, Phase, PlannedAttachment
from nodeworker.errors import RequestFailedError, about, failed
from nodeworker.kernel.namespaces import inode, interfaces_present
from nodeworker.planning.cluster.gather import gather, gather_default, with_chains
from nodeworker.planning.cluster.source import Source
from nodeworker.planning.devices.source import DeviceSource, find_devices
from nodeworker.planning.readiness import Readiness
from nodeworker.planning.resolve.netconf import NodeDefaults, RuntimeNetConf, parse_netconf
from nodeworker.planning.resolve.plan import definition, make_plan
from nodeworker.plugins import chain
from nodeworker.plugins.api import Runners
from nodeworker.plugins.native import registry
from nodeworker.plugins.native.registry import Switch
from nodeworker.plugins.spec import conflist


class Planner:
    """Plans attaches with what *source*, *device_sources* and the node's disk say.

    *native* says which plugins run natively, *info_folder* has the files with device information.
    """

    def __init__(
        self,
        source: Source | None,
        device_sources: Sequence[DeviceSource],
        runners: Runners,
        readiness: Readiness,
        *,
        node_defaults: NodeDefaults,
        native: Switch,
        info_folder: str,
    ) -> None:
        self.node_defaults = node_defaults
        """What a configuration on standard input leaves out."""
        self._source = source
        self._device_sources = device_sources
        self._runners = runners
        self._readiness = readiness
        self._native = native
        self._info_folder = info_folder

    async def plan(self, request: AttachRequested, container_id: ContainerId, readiness_wait: float) -> AttachPlanned:
        """Return the plan for *request*: its plugins are installed, and its interface names are free.

        What is not Plumbline's is never deleted, so a name that is in use is an error. *readiness_wait*: seconds to
        wait for a default network that is not ready. Raises RequestFailedError.
        """
        conf = parse_netconf(request.config, self.node_defaults)
        await self._readiness.wait(conf.readiness_file, readiness_wait, Phase.RESOLVE)
        conf = await with_chains(conf)
        pod, networks = await gather(conf, request.pod, self._source)
        devices = await find_devices(conf, request.pod, pod, networks, self._device_sources)
        planned = make_plan(request, container_id, conf, pod, networks, devices, self._info_folder)
        if modules := registry.unloaded(plugin for each in planned.attachments for plugin in each.plugins):
            # The first import of a plugin's module takes tens of milliseconds: too long for the event loop.
            await asyncio.to_thread(registry.import_modules, modules)
        planned = self._with_native(planned)
        for attachment in planned.attachments:
            chain.require(self._runners, attachment, chain.planned_target(container_id, planned), Phase.ADD)
        _require_free(planned, request)
        return replace(planned, netns_inode=inode(request.netns))

    async def default_attachment(self, conf: RuntimeNetConf, plugin_folders: tuple[str, ...]) -> PlannedAttachment:
        """Return the default network as if it were to be attached. Raises RequestFailedError."""
        try:
            conf = await with_chains(conf)
            found = await gather_default(conf, self._source)
            network, config = definition(found.entry, found.networks)
            attachment = PlannedAttachment(
                network=network,
                ifname=IfName(""),
                cni_name=config.name,
                cni_version=config.cni_version,
                plugins=conflist.render(config),
            )
            attachment = replace(attachment, native=registry.choose(attachment.plugins, self._native))
            target = chain.Target(container_id="", netns="", plugin_folders=plugin_folders)
            chain.require(self._runners, attachment, target, Phase.STATUS)
        except RequestFailedError as error:
            raise RequestFailedError(about("the default network", error.failure)) from error
        return attachment

    def _with_native(self, planned: AttachPlanned) -> AttachPlanned:
        """Return *planned* with the choice which plugins run natively."""
        choices = (registry.choose(attachment.plugins, self._native) for attachment in planned.attachments)
        attachments = (
            replace(each, native=native if any(native) else ())
            for each, native in zip(planned.attachments, choices, strict=True)
        )
        return replace(planned, attachments=tuple(attachments))


def _require_free(planned: AttachPlanned, request: AttachRequested) -> None:
    """Raise RequestFailedError (interface_exists) for an interface name that is in use."""
    names = {attachment.ifname for attachment in planned.attachments}
    in_use = interfaces_present(request.netns, names, Phase.RESOLVE)
    for attachment in planned.attachments:
        if attachment.ifname in in_use:
            raise failed(
                ErrorClass.INTERFACE_EXISTS,
                Phase.RESOLVE,
                f"interface {attachment.ifname} for network {attachment.network} exists in "
                f"{request.netns} already and is not Plumbline's: remove it, or request another name",
                network=attachment.network,
                ifname=attachment.ifname,
            )
