"""Release the resources of an attachment whose DEL a plugin refuses: the sandbox is gone, so no other DEL will come.

Every plugin of the chain runs, also those after one that refuses. Then the refusing plugin's IPAM plugin runs alone. If
that is host-local and refuses too, the worker removes the address from its folder, under host-local's lock and only if
the owner matches.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec

from events.fold import Attachment, Sandbox
from events.schema import ContainerId, Failure, InterfaceDetached, InterfaceDetachFailed, PluginRun
from nodeworker.leaks.evidence.footprint import node_ends, type_of
from nodeworker.leaks.release import free_addresses_of, free_link
from nodeworker.planning.resolve.route_claims import adjusted_result
from nodeworker.plugins import chain, device_info
from nodeworker.plugins.api import PluginError, Runner, Runners
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.ipam import reservations
from nodeworker.plugins.native.ipam.recorded import AddressFolder, folder_of
from nodeworker.plugins.native.registry import ipam_plugin
from nodeworker.plugins.plugin_errors import complaint
from nodeworker.plugins.spec.cni_args import parse_args
from nodeworker.plugins.spec.conflist import ipam_type
from nodeworker.sandboxes.detach import Detacher


class Release(msgspec.Struct):
    """The outcome of a release."""

    outcome: InterfaceDetached | InterfaceDetachFailed
    notes: tuple[str, ...]
    """Sentences for the evidence."""


class ForcedRelease:
    """Releases attachments of sandboxes that are gone."""

    def __init__(self, detacher: Detacher, runners: Runners, executor: Runner, seconds: float) -> None:
        """*seconds*: for each run of a plugin."""
        self._detacher = detacher
        self._runners = runners
        self._executor = executor
        self._seconds = seconds

    async def release(self, sandbox: Sandbox, attachment: Attachment, *, final: bool) -> Release:
        """Release the resources of *attachment*.

        If a plugin refuses: with *final*, release every known resource and stop retrying; without, the release fails
        and is tried again.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        plan = attachment.plan
        target = self._detacher.delete_target(sandbox)
        result = adjusted_result(sandbox.attachments, attachment) or None
        runs, refused = await chain.sweep(self._runners, plan, target, result, self._seconds)
        notes: list[str] = []
        unreleased: Failure | None = None
        for plugin, failure in refused.items():
            freed, run = await self._free_addresses(plugin, attachment, target, notes)
            runs += run
            if not freed:
                unreleased = failure
        deleted = [
            end.name for end in node_ends(type_of(plan), attachment.result) if await asyncio.to_thread(free_link, end)
        ]
        notes += [f"the node's link {name} was deleted" for name in deleted]
        await device_info.withdraw(plan)
        if unreleased is None and refused and not final:
            unreleased = next(iter(refused.values()))
        seconds = loop.time() - started
        network, ifname = plan.network, plan.ifname
        if unreleased is not None:
            failed = InterfaceDetachFailed(
                network=network, ifname=ifname, failure=unreleased, seconds=seconds, runs=runs
            )
            return Release(failed, tuple(notes))
        notes += [f"a plugin refused, and is not asked again: {failure.message}" for failure in refused.values()]
        return Release(InterfaceDetached(network=network, ifname=ifname, seconds=seconds, runs=runs), tuple(notes))

    async def _free_addresses(
        self, plugin: str, attachment: Attachment, target: chain.Target, notes: list[str]
    ) -> tuple[bool, tuple[PluginRun, ...]]:
        """Return whether the addresses of *plugin*, which refused its DEL, are free; and the run of its IPAM plugin."""
        config = cast("dict[str, Any]", msgspec.json.decode(plugin))
        kind = ipam_type(config)
        if not kind:
            return True, ()
        why, run = await self._run_ipam(kind, plugin, config, attachment, target)
        if not why:
            notes.append(f"{kind} freed the address of {attachment.plan.ifname} when it ran alone")
            return True, run
        folder = folder_of(plugin)
        if folder is None:
            notes.append(f"{kind} refused too: {why}")
            return False, run
        return await self._free_directly(folder, attachment, target, notes), run

    async def _run_ipam(
        self, kind: str, plugin: str, config: dict[str, Any], attachment: Attachment, target: chain.Target
    ) -> tuple[str, tuple[PluginRun, ...]]:
        """Run DEL of the IPAM plugin; return why it failed, and its run if it was executed."""
        args, ifname = attachment.plan.cni_args, attachment.plan.ifname
        native = ipam_plugin(kind)
        if native is not None and not native.unsupported(config):
            call = Call(container_id=target.container_id, netns="", ifname=ifname, config=config, args=parse_args(args))
            try:
                await asyncio.to_thread(native.delete, call)
            except NativeError as error:
                return str(error), ()
            return "", ()
        env = {
            "CNI_CONTAINERID": target.container_id,
            "CNI_NETNS": target.netns,
            "CNI_IFNAME": ifname,
            "CNI_ARGS": args,
            "CNI_PATH": ":".join(target.plugin_folders),
        }
        try:
            run, stdout = await self._executor.run(
                kind,
                command="DEL",
                env=env,
                stdin=plugin.encode(),
                plugin_folders=target.plugin_folders,
                timeout=self._seconds,
            )
        except PluginError as error:
            return str(error), ()
        return (complaint(run, stdout).message if run.exit_code else ""), (run,)

    async def _free_directly(
        self, folder: AddressFolder, attachment: Attachment, target: chain.Target, notes: list[str]
    ) -> bool:
        owner = ContainerId(target.container_id)
        try:
            freed = await asyncio.to_thread(free_addresses_of, folder, owner, attachment.plan.ifname)
        except (OSError, reservations.BusyError) as error:
            notes.append(f"{folder.path} could not be used: {error}")
            return False
        notes += [f"the file of {address} was removed from {folder.path} under its lock" for address in freed]
        return True
