"""CHECK and STATUS: questions. They change nothing, so they are answered and not recorded."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from events.fold import SandboxKey, SandboxPhase
from events.schema import ContainerId, ErrorClass, IfName, NetworkName, Phase, PlannedAttachment, Pod
from nodeworker.answers import OK, Reply, refusal
from nodeworker.delegates import chain, conflist
from nodeworker.delegates.exec import PluginExecutor
from nodeworker.delegates.versions import at_least
from nodeworker.detach import target_of
from nodeworker.errors import RequestFailedError, failed
from nodeworker.namespace import interfaces_present
from nodeworker.recorder import Recorder
from nodeworker.resolve.netconf import NetConf, parse_netconf
from nodeworker.settings import WorkerSection

_UNKNOWN_CONTAINER = 3
_NOT_AVAILABLE = 50
_STATUS_SECONDS = 1.5


class Checker:
    """Answers the runtime's questions."""

    def __init__(
        self,
        recorder: Recorder,
        executor: PluginExecutor,
        section: WorkerSection,
        ledger_connected: Callable[[], bool],
    ) -> None:
        self._recorder = recorder
        self._executor = executor
        self._section = section
        self._ledger_connected = ledger_connected

    async def check(self, container_id: ContainerId, ifname: IfName, pod: Pod, config: str) -> Reply:
        """Compare every attachment of a sandbox with what ADD returned (CNI specification 1.1, section 2, "CHECK")."""
        try:
            version = parse_netconf(config, self._section.network).cni_version
            if not at_least(version, "0.4.0"):
                raise failed(
                    ErrorClass.UNSUPPORTED_VERSION,
                    Phase.CHECK,
                    f"CHECK needs cniVersion 0.4.0 or newer, not {version}",
                )
            await self._check(SandboxKey(container_id, ifname), pod)
        except RequestFailedError as error:
            return refusal(error.failure, config)
        return OK

    async def status(self, config: str, path: str) -> Reply:
        """Say whether an ADD would work now (CNI specification 1.1, section 2, "STATUS")."""
        try:
            conf = parse_netconf(config, self._section.network)
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
            await self._delegates_ready(conf, path)
        except RequestFailedError as error:
            return refusal(error.failure, config)
        return OK

    async def _check(self, key: SandboxKey, pod: Pod) -> None:
        sandbox = self._recorder.state.sandboxes.get(key)
        if sandbox is None or sandbox.phase is not SandboxPhase.ATTACHED or sandbox.plan is None:
            phase = "not in the ledger" if sandbox is None else str(sandbox.phase)
            raise failed(
                ErrorClass.INVALID_REQUEST,
                Phase.CHECK,
                f"container {key.container_id[:12]} of pod {pod} is {phase} as {key.ifname}: nothing to check",
                code=_UNKNOWN_CONTAINER,
            )
        made = {a.plan.ifname: a.plan.network for a in sandbox.attachments if '"interfaces"' in a.result}
        present = await asyncio.to_thread(interfaces_present, sandbox.plan.netns, made, Phase.CHECK)
        for ifname, network in made.items():
            if ifname not in present:
                raise failed(
                    ErrorClass.PLUGIN_FAILED,
                    Phase.CHECK,
                    f"interface {ifname} of network {network} is missing in the namespace of pod {sandbox.pod}: "
                    "delete the pod to have it made anew",
                    network=network,
                    ifname=ifname,
                )
        for attachment in sandbox.attachments:
            await chain.check(
                self._executor,
                attachment.plan,
                target_of(sandbox),
                attachment.result,
                self._section.delegate_timeout,
            )

    async def _delegates_ready(self, conf: NetConf, path: str) -> None:
        """Ask the default network's plugins, which every pod needs."""
        for delegate in conf.delegates[:1]:
            try:
                config = conflist.parse(delegate, default_name=conf.name)
            except conflist.ConfigError as error:
                raise failed(ErrorClass.INVALID_CONFIG, Phase.STATUS, str(error), code=_NOT_AVAILABLE) from error
            attachment = PlannedAttachment(
                network=NetworkName(config.name),
                ifname=IfName(""),
                cni_name=config.name,
                cni_version=config.cni_version,
                plugins=conflist.render(config),
            )
            folders = (*(folder for folder in path.split(os.pathsep) if folder), conf.bin_dir)
            target = chain.Target(container_id="", netns="", path=folders)
            await chain.status(self._executor, attachment, target, _STATUS_SECONDS)
