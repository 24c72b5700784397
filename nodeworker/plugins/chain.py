"""The verbs of the specification for one attachment: its delegate is a chain of plugins, and each verb has its rules.

A delegate is the CNI configuration, single or chain, that realises an attachment; a single one is a chain of one.

The order of the chain, what one plugin gets of another, and what an error means follow the CNI specification 1.1,
section 3. Everything comes from the recorded plan, nothing from today's configuration.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from events.schema import AttachPlanned, ContainerId, ErrorClass, Failure, Phase, PlannedAttachment, PluginRun
from nodeworker.errors import CNI_CODES, RequestFailedError
from nodeworker.kernel.namespaces import mtu_of
from nodeworker.plugins.api import PluginError, Runners
from nodeworker.plugins.plugin_errors import complaint, cut_short, not_read_as_success
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.conflist import type_of, with_prev_result, without_runtime_config
from nodeworker.plugins.spec.versions import at_least

_TASKS: Final[Mapping[Phase, str]] = {
    Phase.ADD: "failed to add {ifname} of {network}",
    Phase.DEL: "failed to delete {ifname} of {network}",
    Phase.CHECK: "failed to check {ifname} of {network}",
    Phase.GC: "failed to collect garbage of {network}",
    Phase.STATUS: "is not ready to serve {network}",
}
_WITHIN_NAMESPACE: Final = frozenset({"passthru", "sbr", "tuning", "vrf"})
"""Types of plugins whose effects end with the container's link and namespace."""
_ATTACHMENT_PHASES: Final = frozenset({Phase.ADD, Phase.DEL, Phase.CHECK})


class Target(msgspec.Struct, frozen=True):
    """What plugins get to know of the sandbox."""

    container_id: str
    netns: str
    """Empty in a DEL after the namespace is gone."""
    plugin_folders: tuple[str, ...]
    """Those with plugin binaries: the runtime's CNI_PATH and the configured ones."""


def planned_target(container_id: ContainerId, plan: AttachPlanned) -> Target:
    """Return the target of the sandbox that *plan* is for."""
    folders = tuple(folder for folder in plan.path.split(os.pathsep) if folder)
    return Target(container_id=container_id, netns=plan.netns, plugin_folders=folders)


class PluginFailedError(RequestFailedError):
    """A plugin of an attachment failed; ``runs`` are all runs of the operation, up to and with that plugin's."""

    def __init__(self, failure: Failure, runs: tuple[PluginRun, ...]) -> None:
        super().__init__(failure)
        self.runs = runs


def require(runners: Runners, attachment: PlannedAttachment, target: Target, phase: Phase) -> None:
    """Raise PluginFailedError (plugin_missing, of *phase*) unless every plugin of the attachment is installed.

    Call it before the first plugin runs: a plugin that is not installed can't delete what the chain has made.
    """
    operation = _Operation(runners, attachment, target, phase, 0)
    for config, native in _chain(attachment):
        try:
            runners.require(config, native, target.plugin_folders)
        except PluginError as error:
            raise operation.failure(error.error_class, config, str(error)) from error


async def add(
    runners: Runners,
    attachment: PlannedAttachment,
    target: Target,
    timeout: float,  # noqa: ASYNC109 - shared by the plugins of the chain; see Runner.run
) -> tuple[str, tuple[PluginRun, ...]]:
    """Add the attachment; return the last plugin's result as it was printed, with its ``cniVersion``, and the runs.

    *timeout* is in seconds, for the whole chain; see ``Runner.run``. The caller deletes what a failed chain left.
    Raises PluginFailedError. Section 3, "Adding an attachment".
    """
    operation = _Operation(runners, attachment, target, Phase.ADD, timeout)
    version = attachment.cni_version
    printed, previous, native = "", None, False
    for config, native in _chain(attachment):
        stdout = await operation.run(config, native, with_prev_result(config, previous))
        try:
            printed, previous = results.accepted(stdout.decode().strip(), version)
        except ValueError as error:
            raise operation.failure(ErrorClass.PLUGIN_OUTPUT, config, str(error)) from error
    *before, last = operation.runs
    mtu = last.mtu if native else await asyncio.to_thread(_mtu, target, attachment)
    # The result has what it printed: the ledger need not have it twice.
    return printed, (*before, replace(last, stdout="", mtu=mtu))


def _mtu(target: Target, attachment: PlannedAttachment) -> int:
    """Return the interface's MTU, which few executed plugins report; 0 if there is no such interface."""
    try:
        return mtu_of(target.netns, attachment.ifname, Phase.ADD)
    except (OSError, RequestFailedError):
        return 0


async def delete(
    runners: Runners,
    attachment: PlannedAttachment,
    target: Target,
    result: str | None,
    timeout: float,  # noqa: ASYNC109
) -> tuple[PluginRun, ...]:
    """Do what ``sweep`` does; return the runs. Raises PluginFailedError when all plugins have run and some failed."""
    runs, failures = await sweep(runners, attachment, target, result, timeout)
    if failures:
        raise PluginFailedError(together(failures.values()), runs)
    return runs


async def sweep(
    runners: Runners,
    attachment: PlannedAttachment,
    target: Target,
    result: str | None,
    timeout: float,  # noqa: ASYNC109
) -> tuple[tuple[PluginRun, ...], dict[str, Failure]]:
    """Delete the attachment, last plugin first; return the runs, and the failures by configuration.

    *result* is what ``add`` returned, None if it did not; *timeout* is in seconds, for the whole chain. Section 3,
    "Deleting an attachment". All plugins run, also after a failure: a plugin that refuses may refuse for ever, and the
    others free what they hold.
    """
    operation = _Operation(runners, attachment, target, Phase.DEL, timeout)
    previous = _previous(attachment, result)
    failures: dict[str, Failure] = {}
    for config, native in reversed(_chain(attachment)):
        try:
            await operation.run(config, native, with_prev_result(config, previous))
        except PluginFailedError as error:
            failures[config] = error.failure
    return tuple(operation.runs), failures


def holders(
    attachment: PlannedAttachment, refused: Mapping[str, Failure], of_add: Failure | None
) -> dict[str, Failure]:
    """Return those of *refused*, failures of DEL by configuration, whose plugin may still have resources on the node.

    *of_add* is the failure of the sandbox's ADD, None if it succeeded. The first plugin has link and address. Once it
    has deleted them, nothing is left of a plugin that changes only the link and its namespace, of one that the ADD did
    not reach, and of one that gives the same reason as in the ADD: it refuses its configuration and did nothing. That a
    plugin crashed or was killed is no such reason.
    """
    if not refused or attachment.plugins[0] in refused:
        return dict(refused)
    types = [type_of(config) for config in attachment.plugins]
    failed_at = len(types)
    if of_add is not None and of_add.phase is Phase.ADD and of_add.ifname == attachment.ifname:
        failed_at = max((index for index, each in enumerate(types) if each == of_add.plugin_type), default=failed_at)

    def holds(config: str, failure: Failure) -> bool:
        index = attachment.plugins.index(config)
        if types[index] in _WITHIN_NAMESPACE or index > failed_at:
            return False
        if index != failed_at or of_add is None:
            return True
        reason = _reason(failure)
        return cut_short(reason) or reason != _reason(of_add)

    return {config: failure for config, failure in refused.items() if holds(config, failure)}


def together(failures: Collection[Failure]) -> Failure:
    """Return one failure for several: the first, with every sentence."""
    return replace(next(iter(failures)), message="; ".join(failure.message for failure in failures))


def _reason(failure: Failure) -> str:
    """Return what the plugin said, without what the worker put before it."""
    task = _TASKS[failure.phase].format(ifname=failure.ifname, network=failure.network)
    return not_read_as_success(failure.message.partition(f"{task}: ")[2])


async def check(
    runners: Runners,
    attachment: PlannedAttachment,
    target: Target,
    result: str,
    timeout: float,  # noqa: ASYNC109
) -> tuple[PluginRun, ...]:
    """Check the attachment against *result*, which is what ``add`` returned; return the runs.

    No plugin runs below version 0.4.0, or if the configuration disables CHECK. *timeout* is in seconds, for the whole
    chain. Raises PluginFailedError at the first plugin that fails. Section 3, "Checking an attachment".
    """
    if attachment.disable_check or not at_least(attachment.cni_version, "0.4.0"):
        return ()
    operation = _Operation(runners, attachment, target, Phase.CHECK, timeout)
    try:
        previous = results.convert(result, attachment.cni_version, attachment.cni_version)
    except results.ResultError as error:
        message = f"what ADD returned can't be read: {error}"
        raise operation.failure(ErrorClass.PLUGIN_OUTPUT, attachment.plugins[0], message) from error
    for config, native in _chain(attachment):
        await operation.run(config, native, with_prev_result(config, previous))
    return tuple(operation.runs)


async def gc(
    runners: Runners,
    attachment: PlannedAttachment,
    target: Target,
    valid: Sequence[tuple[str, str]],
    timeout: float,  # noqa: ASYNC109
) -> tuple[PluginRun, ...]:
    """Run GC of every plugin with the *valid* (container ID, interface name); return the runs.

    No plugin runs below version 1.1.0, or if the configuration disables GC. With an empty *valid*, all is garbage.
    *timeout* is in seconds, for the whole chain. Raises PluginFailedError when all plugins have run and some failed.
    Section 3, "Garbage-collecting a network".
    """
    if attachment.disable_gc or not at_least(attachment.cni_version, "1.1.0"):
        return ()
    operation = _Operation(runners, attachment, target, Phase.GC, timeout)
    attachments = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in valid]
    # The Go library used the second key before 1.1.0 was final; plugins built with it read only that one.
    keys = {"cni.dev/valid-attachments": attachments, "cni.dev/attachments": attachments}
    failures: list[Failure] = []
    for config, native in _chain(attachment):
        try:
            await operation.run(config, native, without_runtime_config(config, keys))
        except PluginFailedError as error:
            failures.append(error.failure)
    if failures:
        raise PluginFailedError(together(failures), tuple(operation.runs))
    return tuple(operation.runs)


async def status(
    runners: Runners,
    attachment: PlannedAttachment,
    target: Target,
    timeout: float,  # noqa: ASYNC109
) -> tuple[PluginRun, ...]:
    """Ask every plugin whether an ADD would work now; return the runs.

    No plugin runs below version 1.1.0. *timeout* is in seconds, for the whole chain. Raises PluginFailedError at the
    first plugin that is not ready. Section 2, "STATUS".
    """
    if not at_least(attachment.cni_version, "1.1.0"):
        return ()
    operation = _Operation(runners, attachment, target, Phase.STATUS, timeout)
    for config, native in _chain(attachment):
        await operation.run(config, native, without_runtime_config(config, {}))
    return tuple(operation.runs)


class _Operation:
    """One verb on one attachment: its environment, when its time ends, the runs so far."""

    def __init__(
        self, runners: Runners, attachment: PlannedAttachment, target: Target, phase: Phase, seconds: float
    ) -> None:
        self.runs: list[PluginRun] = []
        self._runners = runners
        self._attachment = attachment
        self._phase = phase
        self._plugin_folders = target.plugin_folders
        self._env = {"CNI_PATH": os.pathsep.join(target.plugin_folders)}
        if phase in _ATTACHMENT_PHASES:
            self._env |= {
                "CNI_CONTAINERID": target.container_id,
                "CNI_NETNS": target.netns,
                "CNI_IFNAME": attachment.ifname,
                "CNI_ARGS": attachment.cni_args,
            }
        self._ends_at = time.monotonic() + seconds

    async def run(self, config: str, native: bool, stdin: bytes) -> bytes:
        """Return what the plugin of *config* printed; *native*: as planned. Raises PluginFailedError."""
        try:
            run, stdout = await self._runners.runner(config, native, self._plugin_folders).run(
                type_of(config),
                command=self._phase.value.upper(),
                env=self._env,
                stdin=stdin,
                plugin_folders=self._plugin_folders,
                timeout=self._ends_at - time.monotonic(),
            )
        except PluginError as error:
            if error.run is not None:
                self.runs.append(error.run)
            raise self.failure(error.error_class, config, str(error)) from error
        self.runs.append(run)
        if run.exit_code:
            said = complaint(run, stdout)
            raise self.failure(ErrorClass.PLUGIN_FAILED, config, said.message, code=said.code, details=said.details)
        return stdout

    def failure(
        self, error_class: ErrorClass, config: str, message: str, *, code: int = 0, details: str = ""
    ) -> PluginFailedError:
        """Return the error for the plugin of *config*; *message* is the reason, *code* the plugin's own code."""
        plugin_type, network, ifname = type_of(config), self._attachment.network, self._attachment.ifname
        sentence = f"{plugin_type} {_TASKS[self._phase].format(ifname=ifname, network=network)}: {message}"
        if self._phase is Phase.DEL:
            sentence, details = not_read_as_success(sentence), not_read_as_success(details)
        failure = Failure(
            error_class=error_class,
            phase=self._phase,
            message=sentence,
            code=code or CNI_CODES[error_class],
            network=network,
            ifname=ifname if self._phase in _ATTACHMENT_PHASES else "",
            plugin_type=plugin_type,
            details=details,
        )
        return PluginFailedError(failure, tuple(self.runs))


def _previous(attachment: PlannedAttachment, result: str | None) -> Any:
    """Return the ``prevResult`` of a DEL, from *result*; None if there is none or the version has none."""
    if result is None or not at_least(attachment.cni_version, "0.4.0"):
        return None
    try:
        return results.convert(result, attachment.cni_version, attachment.cni_version)
    except results.ResultError:
        return None  # plugins must cope without it, and an unreadable record must not block a DEL for ever


def _chain(attachment: PlannedAttachment) -> list[tuple[str, bool]]:
    """Return the plugins of *attachment* in order, each with whether it was planned to run natively."""
    native = attachment.native or (False,) * len(attachment.plugins)
    return list(zip(attachment.plugins, native, strict=True))
