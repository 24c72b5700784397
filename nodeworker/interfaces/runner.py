"""Run a native plugin where a process would have been executed, so that nothing around it need know the difference.

It takes what ``PluginExecutor.run`` takes and returns what that returns: exit code, standard output, a record of the
run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from events.schema import ErrorClass, PluginRun
from nodeworker.delegates import results
from nodeworker.delegates.complaints import complaint
from nodeworker.delegates.exec import PluginError, PluginExecutor
from nodeworker.delegates.results import Result
from nodeworker.interfaces.native import GENERIC, PATIENCE, TRY_AGAIN, IpamPlugin, NativeError
from nodeworker.interfaces.processes import NativeProcesses
from nodeworker.interfaces.registry import (
    Switch,
    enabled,
    interface_plugin,
    ipam_plugin,
    ipam_type,
)
from nodeworker.interfaces.work import Done, Work, version_of

_PAUSE = 0.05
"""Seconds in which a process does other work, before it tries again what somebody holds up."""


class NativeRunner:
    """Runs native plugins in *processes*. Those IPAM plugins that are not native are executed by *executor*."""

    def __init__(self, executor: PluginExecutor, switch: Switch, processes: NativeProcesses) -> None:
        self._executor = executor
        self._switch = switch
        self._processes = processes

    async def run(
        self,
        plugin_type: str,
        *,
        command: str,
        env: Mapping[str, str],
        stdin: bytes,
        search: Sequence[str],
        timeout: float,  # noqa: ASYNC109 - as in PluginExecutor.run
    ) -> tuple[PluginRun, bytes]:
        """Do what ``PluginExecutor.run`` does. Raises PluginError for an IPAM plugin that could not be executed."""
        if timeout <= 0:
            raise PluginError(ErrorClass.PLUGIN_TIMEOUT, f"plugin {plugin_type} was not started: no time was left")
        if interface_plugin(plugin_type) is None:
            raise PluginError(ErrorClass.PLUGIN_MISSING, f"plugin {plugin_type} is not one that Plumbline has built in")
        started = asyncio.get_running_loop().time()
        config = cast("dict[str, Any]", msgspec.json.decode(stdin))
        ipam = ipam_type(config)
        work = Work(plugin=plugin_type, command=command, env=env, stdin=stdin)
        try:
            if not ipam:
                done = await self._do(work, config)
            elif self.native_ipam(ipam, config) is not None:
                done = await self._do(msgspec.structs.replace(work, ipam=ipam), config)
            else:
                done = await self._with_executed(ipam, work, config, search, started + timeout)
            stdout, mtu, exit_code = done.stdout, done.mtu, 0
        except NativeError as error:
            refusal = {"cniVersion": version_of(config), "code": error.code, "msg": str(error)}
            stdout, mtu, exit_code = msgspec.json.encode(refusal), 0, 1
        seconds = asyncio.get_running_loop().time() - started
        return PluginRun(type=plugin_type, command=command, seconds=seconds, exit_code=exit_code, mtu=mtu), stdout

    def native_ipam(self, ipam: str, config: Mapping[str, Any]) -> IpamPlugin | None:
        """Return the IPAM plugin of *config* if it is to run natively."""
        plugin = ipam_plugin(ipam) if ipam else None
        return plugin if plugin and enabled(ipam, self._switch) and not plugin.unsupported(config) else None

    async def _do(self, work: Work, config: Mapping[str, Any]) -> Done:
        """Return what came of *work*, which is tried again while others hold it up. Raises NativeError."""
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE
        while (done := await self._processes.do(work, str(config.get("name", "")))).code == TRY_AGAIN:
            if loop.time() > until:
                break
            await asyncio.sleep(_PAUSE)
        if done.refusal:
            raise NativeError(done.refusal, done.code)
        return done

    async def _with_executed(
        self, ipam: str, work: Work, config: Mapping[str, Any], search: Sequence[str], deadline: float
    ) -> Done:
        """Do the same with an IPAM plugin that is executed. Raises NativeError, PluginError."""
        if work.command == "DEL":
            done = await self._do(work, config)
            await self._execute(ipam, work, search, deadline)
            return done
        assigned = await self._execute(ipam, work, search, deadline)
        if work.command == "ADD":
            work = msgspec.structs.replace(work, assigned=_assigned(ipam, assigned, version_of(config)))
        return await self._do(work, config)

    async def _execute(self, ipam: str, work: Work, search: Sequence[str], deadline: float) -> bytes:
        run, stdout = await self._executor.run(
            ipam,
            command=work.command,
            env=work.env,
            stdin=work.stdin,
            search=search,
            timeout=deadline - asyncio.get_running_loop().time(),
        )
        if run.exit_code:
            said = complaint(run, stdout)
            raise NativeError(f"IPAM plugin {ipam}: {said.message}", said.code or GENERIC)
        return stdout


def _assigned(ipam: str, printed: bytes, version: str) -> Result:
    """Return what an IPAM plugin that was executed has assigned. Raises NativeError."""
    try:
        return results.decode(printed.decode(), version)
    except ValueError as error:
        raise NativeError(f"IPAM plugin {ipam} printed no usable result: {error}") from error
