"""CHECK and STATUS: they change nothing, so they are answered and not recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from events.fold import Sandbox, SandboxKey, SandboxPhase
from events.schema import ContainerId, DriftKind, ErrorClass, IfName, Phase, PlannedAttachment, Pod
from nodeworker.drift.inspector import Inspector
from nodeworker.errors import RequestFailedError, about, failed, subject_of
from nodeworker.journal.journal import Journal
from nodeworker.kernel.namespaces import interfaces_present
from nodeworker.planning.planner import Planner
from nodeworker.planning.readiness import absence, not_ready
from nodeworker.planning.resolve.netconf import RuntimeNetConf, parse_netconf
from nodeworker.planning.resolve.route_claims import adjusted_result, claimed_routes
from nodeworker.plugins import chain
from nodeworker.plugins.api import Runners
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.ipam import host_local
from nodeworker.plugins.spec.conflist import ipam_type
from nodeworker.plugins.spec.versions import at_least
from nodeworker.sandboxes import default_route
from nodeworker.sandboxes.answers import OK, Reply, error_reply
from nodeworker.sandboxes.detach import add_target

_UNKNOWN_CONTAINER = 3
_NOT_AVAILABLE = 50
_STATUS_SECONDS = 1.5
_ACCEPTED = frozenset({DriftKind.ADDRESS_FOREIGN, DriftKind.DEVICE_INFO_CHANGED})


class Checker:
    """Answers CHECK and STATUS."""

    def __init__(
        self,
        journal: Journal,
        runners: Runners,
        planner: Planner,
        delegate_timeout: float,
        ledger_connected: Callable[[], bool],
        inspector: Inspector,
    ) -> None:
        self._journal = journal
        self._runners = runners
        self._planner = planner
        self._delegate_timeout = delegate_timeout
        self._ledger_connected = ledger_connected
        self._inspector = inspector

    async def check(self, container_id: ContainerId, ifname: IfName, pod: Pod, config: str) -> Reply:
        """Compare every attachment of a sandbox with what ADD returned (CNI specification 1.1, section 2, "CHECK")."""
        try:
            version = parse_netconf(config, self._planner.node_defaults).cni_version
            if not at_least(version, "0.4.0"):
                raise failed(
                    ErrorClass.UNSUPPORTED_VERSION,
                    Phase.CHECK,
                    f"CHECK needs cniVersion 0.4.0 or newer, not {version}",
                )
            await self._check(SandboxKey(container_id, ifname))
        except RequestFailedError as error:
            return error_reply(about(subject_of(pod, container_id), error.failure), config)
        return OK

    async def status(self, config: str, path: str) -> Reply:
        """Answer whether an ADD would work now (CNI specification 1.1, section 2, "STATUS")."""
        try:
            conf = parse_netconf(config, self._planner.node_defaults)
            if not at_least(conf.cni_version, "1.1.0"):
                raise failed(
                    ErrorClass.UNSUPPORTED_VERSION,
                    Phase.STATUS,
                    f"STATUS needs cniVersion 1.1.0 or newer, not {conf.cni_version}",
                )
            if not self._ledger_connected():
                raise failed(
                    ErrorClass.LEDGER_UNAVAILABLE,
                    Phase.STATUS,
                    "the node ledger does not answer, so nothing can be attached: is nats-server running?",
                    code=_NOT_AVAILABLE,
                )
            if reason := absence(conf.readiness_file):
                raise not_ready(conf.readiness_file, reason, Phase.STATUS, _NOT_AVAILABLE)
            await self._default_network_ready(conf, conf.plugin_folders(path))
        except RequestFailedError as error:
            return error_reply(error.failure, config)
        return OK

    async def _check(self, key: SandboxKey) -> None:
        sandbox = self._journal.state.sandboxes.get(key)
        if sandbox is None or sandbox.phase is not SandboxPhase.ATTACHED or sandbox.plan is None:
            phase = "not in the ledger" if sandbox is None else str(sandbox.phase)
            raise failed(
                ErrorClass.INVALID_REQUEST,
                Phase.CHECK,
                f"container {key.container_id[:12]} is {phase} as {key.ifname}: nothing to check",
                code=_UNKNOWN_CONTAINER,
            )
        made = {a.plan.ifname: a.plan.network for a in sandbox.attachments if '"interfaces"' in a.result}
        present = interfaces_present(sandbox.plan.netns, made, Phase.CHECK, sandbox.plan.netns_inode)
        for ifname, network in made.items():
            if ifname not in present:
                raise failed(
                    ErrorClass.PLUGIN_FAILED,
                    Phase.CHECK,
                    f"interface {ifname} of network {network} is missing in the pod's namespace: recreate the pod",
                    network=network,
                    ifname=ifname,
                )
        for route in claimed_routes(sandbox.attachments):
            await asyncio.to_thread(default_route.check, sandbox.plan.netns, route)
        for attachment in sandbox.attachments:
            if not attachment.result:
                continue  # adopted, and what its ADD had returned was lost: there is nothing to compare with
            await chain.check(
                self._runners,
                attachment.plan,
                add_target(sandbox),
                adjusted_result(sandbox.attachments, attachment),
                self._delegate_timeout,
            )
        await self._compare(sandbox)

    async def _compare(self, sandbox: Sandbox) -> None:
        """Compare what plugins may not have checked, of all attachments whose configuration allows CHECK.

        An added address is drift, but CHECK accepts it: others may have changed the interface since (CNI specification
        1.1, section 2, "CHECK"). Device information is no part of the interface.
        """
        inspection = await self._inspector.inspect_present(sandbox, Phase.CHECK, everything=True)
        silent = {attachment.plan.ifname for attachment in sandbox.attachments if attachment.plan.disable_check}
        for drift in inspection.drifts:
            if drift.ifname in silent or drift.kind in _ACCEPTED:
                continue
            wanted, found = drift.expected, drift.found or "nothing"
            raise failed(
                ErrorClass.PLUGIN_FAILED,
                Phase.CHECK,
                f"interface {drift.ifname} of network {drift.network} is not as recorded "
                f"({drift.kind.value.replace('_', ' ')}): it should have {wanted}, and there is {found}; "
                "see its drift in plumbline timeline",
                network=drift.network,
                ifname=drift.ifname,
            )

    async def _default_network_ready(self, conf: RuntimeNetConf, plugin_folders: tuple[str, ...]) -> None:
        """Ask the plugins of the default network, which every pod needs, if an ADD would get as far as to them."""
        try:
            async with asyncio.timeout(_STATUS_SECONDS):
                attachment = await self._planner.default_attachment(conf, plugin_folders)
        except TimeoutError as error:
            message = "the default network could not be looked up in time; is the API server slow to answer?"
            raise failed(ErrorClass.SOURCE_UNAVAILABLE, Phase.STATUS, message, code=_NOT_AVAILABLE) from error
        except RequestFailedError as error:
            unavailable = replace(error.failure, phase=Phase.STATUS, code=_NOT_AVAILABLE)
            raise RequestFailedError(unavailable) from error
        target = chain.Target(container_id="", netns="", plugin_folders=plugin_folders)
        await chain.status(self._runners, attachment, target, _STATUS_SECONDS)
        await asyncio.to_thread(_addresses_left, attachment)


def _addresses_left(attachment: PlannedAttachment) -> None:
    """Raise RequestFailedError unless host-local, if it serves the network, has an address left.

    STATUS needs version 1.1.0, and few released plugins support it, so the worker reads host-local's files.
    """
    config = cast("dict[str, Any]", msgspec.json.decode(attachment.plugins[0]))
    if ipam_type(config) != host_local.TYPE or host_local.unsupported(config):
        return
    try:
        host_local.status(Call(container_id="", netns="", ifname="", config=config))
    except NativeError as error:
        raise failed(
            ErrorClass.PLUGIN_FAILED, Phase.STATUS, str(error), network=attachment.network, code=_NOT_AVAILABLE
        ) from error
