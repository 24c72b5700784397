"""Run a native plugin, with the arguments and the result of ``PluginExecutor.run``.

So the code around it need not know whether a plugin is executed.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec

from events.schema import ErrorClass, PluginRun
from nodeworker.plugins.api import PluginError
from nodeworker.plugins.exec import PluginExecutor
from nodeworker.plugins.native import registry
from nodeworker.plugins.native.api import GENERIC, NativeError
from nodeworker.plugins.native.jobs import JobResult, PluginJob, version_of
from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.native.registry import Switch
from nodeworker.plugins.plugin_errors import complaint
from nodeworker.plugins.spec import conflist, results
from nodeworker.plugins.spec.results import Result


class ConfigSummary(NamedTuple):
    """What the runner needs of a plugin's configuration."""

    network: str
    version: str
    """Of its results."""
    ipam_type: str
    """Type of its IPAM plugin; empty: it names none."""
    native_ipam: bool


@functools.lru_cache(64)
def summary_of(stdin: bytes, switch: Switch) -> ConfigSummary:
    """Return the summary of the configuration *stdin*. It is cached: most pods of a network have the same."""
    config = cast("dict[str, Any]", msgspec.json.decode(stdin))
    ipam_type = conflist.ipam_type(config)
    plugin = registry.ipam_plugin(ipam_type) if ipam_type else None
    native = plugin is not None and registry.enabled(ipam_type, switch) and not plugin.unsupported(config)
    return ConfigSummary(str(config.get("name", "")), version_of(config), ipam_type, native)


class NativeRunner:
    """Runs native plugins in *pool*. IPAM plugins that are not native are executed by *executor*."""

    def __init__(self, executor: PluginExecutor, switch: Switch, pool: NativePool) -> None:
        self._executor = executor
        self._switch = switch
        self._pool = pool

    async def run(
        self,
        plugin_type: str,
        *,
        command: str,
        env: Mapping[str, str],
        stdin: bytes,
        plugin_folders: Sequence[str],
        timeout: float,  # noqa: ASYNC109 - as in PluginExecutor.run
    ) -> tuple[PluginRun, bytes]:
        """Do what ``PluginExecutor.run`` does, but *timeout* does not end a native job, only an executed IPAM plugin.

        Raises PluginError if no time is left, or for an IPAM plugin that could not be executed.
        """
        if timeout <= 0:
            raise PluginError(ErrorClass.PLUGIN_TIMEOUT, f"plugin {plugin_type} was not started: no time was left")
        if registry.interface_plugin(plugin_type) is None:
            raise PluginError(ErrorClass.PLUGIN_MISSING, f"plugin {plugin_type} has no native form")
        started = asyncio.get_running_loop().time()
        summary = summary_of(stdin, self._switch)
        native_ipam = summary.ipam_type if summary.native_ipam else ""
        job = PluginJob(plugin_type=plugin_type, command=command, env=env, stdin=stdin, ipam_type=native_ipam)
        try:
            if summary.native_ipam or not summary.ipam_type:
                result = _succeeded(await self._pool.submit(job, job.container_id or summary.network))
                seconds = result.seconds
            else:
                result = await self._run_with_executed_ipam(summary, job, plugin_folders, started + timeout)
                seconds = asyncio.get_running_loop().time() - started
            stdout, mtu, exit_code = result.stdout, result.mtu, 0
        except NativeError as error:
            report = {"cniVersion": summary.version, "code": error.code, "msg": str(error)}
            stdout, mtu, exit_code = msgspec.json.encode(report), 0, 1
            seconds = asyncio.get_running_loop().time() - started
        return PluginRun(type=plugin_type, command=command, seconds=seconds, exit_code=exit_code, mtu=mtu), stdout

    async def _run_with_executed_ipam(
        self, summary: ConfigSummary, job: PluginJob, plugin_folders: Sequence[str], ends_at: float
    ) -> JobResult:
        """Do *job*, with an IPAM plugin that is executed, until the loop's time *ends_at*.

        Raises NativeError, PluginError.
        """
        queue = job.container_id or summary.network
        if job.command == "DEL":
            result = _succeeded(await self._pool.submit(job, queue))
            await self._execute(summary.ipam_type, job, plugin_folders, ends_at)
            return result
        printed = await self._execute(summary.ipam_type, job, plugin_folders, ends_at)
        if job.command == "ADD":
            job = msgspec.structs.replace(job, ipam_result=_ipam_result(summary.ipam_type, printed, summary.version))
        return _succeeded(await self._pool.submit(job, queue))

    async def _execute(self, ipam_type: str, job: PluginJob, plugin_folders: Sequence[str], ends_at: float) -> bytes:
        run, stdout = await self._executor.run(
            ipam_type,
            command=job.command,
            env=job.env,
            stdin=job.stdin,
            plugin_folders=plugin_folders,
            timeout=ends_at - asyncio.get_running_loop().time(),
        )
        if run.exit_code:
            said = complaint(run, stdout)
            raise NativeError(f"IPAM plugin {ipam_type}: {said.message}", said.code or GENERIC)
        return stdout


def _succeeded(result: JobResult) -> JobResult:
    """Return *result*. Raises NativeError if the job failed."""
    if result.error:
        raise NativeError(result.error, result.code)
    return result


def _ipam_result(ipam_type: str, printed: bytes, version: str) -> Result:
    """Return what an executed IPAM plugin has assigned. Raises NativeError."""
    try:
        return results.decode(printed.decode(), version)
    except ValueError as error:
        raise NativeError(f"IPAM plugin {ipam_type} printed no usable result: {error}") from error
