"""Run a native plugin where a process would have been executed, so that nothing around it need know the difference.

It takes what ``PluginExecutor.run`` takes and returns what that returns: exit code, standard output, a record of the
run.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgspec

from events.schema import ErrorClass, PluginRun
from nodeworker.plugins.exec import PluginError, PluginExecutor
from nodeworker.plugins.native.api import GENERIC, NativeError
from nodeworker.plugins.native.jobs import Done, Work, version_of
from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.native.registry import Switch, enabled, interface_plugin, ipam_plugin, ipam_type
from nodeworker.plugins.plugin_errors import complaint
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.results import Result


class Way(NamedTuple):
    """What a plugin's configuration asks for."""

    network: str
    version: str
    """That its results are to be in."""
    ipam: str
    """Type of its IPAM plugin; empty: it names none."""
    native_ipam: bool


@functools.lru_cache(64)
def way_of(stdin: bytes, switch: Switch) -> Way:
    """Return what the configuration *stdin* asks for, with *switch*. Most pods of a network have the same."""
    config = cast("dict[str, Any]", msgspec.json.decode(stdin))
    ipam = ipam_type(config)
    plugin = ipam_plugin(ipam) if ipam else None
    native = plugin is not None and enabled(ipam, switch) and not plugin.unsupported(config)
    return Way(str(config.get("name", "")), version_of(config), ipam, native)


class NativeRunner:
    """Runs native plugins in *processes*. Those IPAM plugins that are not native are executed by *executor*."""

    def __init__(self, executor: PluginExecutor, switch: Switch, processes: NativePool) -> None:
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
        way = way_of(stdin, self._switch)
        work = Work(plugin=plugin_type, command=command, env=env, stdin=stdin, ipam=way.ipam if way.native_ipam else "")
        try:
            if way.ipam and not way.native_ipam:
                done = await self._with_executed(way, work, search, started + timeout)
                seconds = asyncio.get_running_loop().time() - started
            else:
                done = await self._do(work, way)
                seconds = done.seconds
            stdout, mtu, exit_code = done.stdout, done.mtu, 0
        except NativeError as error:
            refusal = {"cniVersion": way.version, "code": error.code, "msg": str(error)}
            stdout, mtu, exit_code = msgspec.json.encode(refusal), 0, 1
            seconds = asyncio.get_running_loop().time() - started
        return PluginRun(type=plugin_type, command=command, seconds=seconds, exit_code=exit_code, mtu=mtu), stdout

    async def _do(self, work: Work, way: Way) -> Done:
        """Return what came of *work*. Raises NativeError."""
        done = await self._processes.do(work, work.env.get("CNI_CONTAINERID") or way.network)
        if done.refusal:
            raise NativeError(done.refusal, done.code)
        return done

    async def _with_executed(self, way: Way, work: Work, search: Sequence[str], deadline: float) -> Done:
        """Do the same with an IPAM plugin that is executed. Raises NativeError, PluginError."""
        if work.command == "DEL":
            done = await self._do(work, way)
            await self._execute(way.ipam, work, search, deadline)
            return done
        assigned = await self._execute(way.ipam, work, search, deadline)
        if work.command == "ADD":
            work = msgspec.structs.replace(work, assigned=_assigned(way.ipam, assigned, way.version))
        return await self._do(work, way)

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
