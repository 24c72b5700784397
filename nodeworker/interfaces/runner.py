"""Run a native plugin where a process would have been executed, so that nothing around it need know the difference.

It takes what ``PluginExecutor.run`` takes and returns what that returns: exit code, standard output, a record of the
run. What blocks (rtnetlink works in its sender's context, host-local waits for a lock) runs on a few threads: the
kernel has one lock for all links, behind which more of them would only queue.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import msgspec

from events.schema import ErrorClass, PluginRun
from nodeworker.delegates import results
from nodeworker.delegates.complaints import complaint
from nodeworker.delegates.exec import PluginError, PluginExecutor
from nodeworker.delegates.results import Result
from nodeworker.delegates.versions import UNSTATED
from nodeworker.errors import RequestFailedError
from nodeworker.interfaces.native import Call, InterfacePlugin, IpamPlugin, NativeError
from nodeworker.interfaces.registry import (
    Switch,
    collecting_plugin,
    enabled,
    interface_plugin,
    ipam_plugin,
    ipam_type,
)
from nodeworker.resolve.cni_args import parse_args
from nodeworker.structs import convert

THREADS = 4
_INVALID_ENVIRONMENT, _IO_FAILURE, _UNDECODABLE, _INVALID_CONFIG, _GENERIC = 4, 5, 6, 7, 999
_VERBS = frozenset({"ADD", "CHECK", "DEL", "GC", "STATUS"})
_VALID_ATTACHMENTS = "cni.dev/valid-attachments"
_OLD_VALID_ATTACHMENTS = "cni.dev/attachments"

T = TypeVar("T")


class NativeRunner:
    """Runs native plugins. Those IPAM plugins that are not native are executed by *executor*."""

    def __init__(self, executor: PluginExecutor, switch: Switch) -> None:
        self._executor = executor
        self._switch = switch
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="native")

    def close(self) -> None:
        """Let go of the threads, when what they do is done."""
        self._threads.shutdown()

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
        plugin = interface_plugin(plugin_type)
        if plugin is None:
            raise PluginError(ErrorClass.PLUGIN_MISSING, f"plugin {plugin_type} is not one that Plumbline has built in")
        loop = asyncio.get_running_loop()
        started = loop.time()
        job = _Job(self, plugin, command, env, stdin, search, started + timeout)
        try:
            stdout, exit_code = await job.run(), 0
        except NativeError as error:
            stdout, exit_code = job.refusal(error), 1
        except OSError as error:
            # What the plugin did not foresee: no descriptor or memory is left, most likely.
            failure = NativeError(f"the node does not let it work: {error.strerror or error}", _IO_FAILURE)
            stdout, exit_code = job.refusal(failure), 1
        run = PluginRun(type=plugin_type, command=command, seconds=loop.time() - started, exit_code=exit_code)
        return run, stdout

    async def on_thread(self, work: Callable[[], T], give_up: Callable[[], None] = lambda: None) -> T:
        """Return what *work* returns. A cancellation is raised when it has ended: nothing goes on behind its back.

        *give_up* is called first, and may bring that end nearer.
        """
        job = self._threads.submit(work)
        running = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            give_up()
            while not (job.cancel() or running.done()):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            if running.done() and not running.cancelled():
                running.exception()  # nobody is left who wants to know
            raise

    async def execute(self, plugin_type: str, **how: Any) -> tuple[PluginRun, bytes]:
        """Execute an IPAM plugin that is not native."""
        return await self._executor.run(plugin_type, **how)

    def native_ipam(self, ipam: str, config: Mapping[str, Any]) -> IpamPlugin | None:
        """Return the IPAM plugin of *config* if it is to run natively."""
        plugin = ipam_plugin(ipam) if ipam else None
        return plugin if plugin and enabled(ipam, self._switch) and not plugin.unsupported(config) else None


class _Attachment(msgspec.Struct, frozen=True):
    """One of those that GC is told to keep (CNI specification 1.1, section 2, "GC")."""

    container_id: str = msgspec.field(name="containerID")
    ifname: str


class _Job:
    """One verb of one plugin, and of the IPAM plugin that it delegates to (CNI specification 1.1, section 4)."""

    def __init__(
        self,
        runner: NativeRunner,
        plugin: InterfacePlugin,
        command: str,
        env: Mapping[str, str],
        stdin: bytes,
        search: Sequence[str],
        deadline: float,
    ) -> None:
        self._runner = runner
        self._plugin = plugin
        self._command = command
        self._env = env
        self._stdin = stdin
        self._search = search
        self._deadline = deadline
        self._config = cast("dict[str, Any]", msgspec.json.decode(stdin))
        self._previous = self._config.pop("prevResult", None)
        self._valid = self._config.pop(_VALID_ATTACHMENTS, None)
        self._config.pop(_OLD_VALID_ATTACHMENTS, None)
        self._version: str = self._config.get("cniVersion") or UNSTATED
        self._ipam = ipam_type(self._config)
        self._given_up = False

    async def run(self) -> bytes:
        """Return what the plugin would print. Raises NativeError, PluginError.

        All of it is done in one visit to a thread unless an IPAM plugin has to be executed.
        """
        if self._command not in _VERBS:
            raise NativeError(f"{self._command} is no verb of CNI", _INVALID_ENVIRONMENT)
        call = self._call()
        valid = _valid_attachments(self._valid) if self._command == "GC" else frozenset()
        ipam = self._runner.native_ipam(self._ipam, self._config)
        assigned = None
        if self._ipam and not ipam and self._command != "DEL":
            assigned = self._assigned(await self._execute_ipam())
        printed = await self._runner.on_thread(lambda: self._do(call, ipam, assigned, valid), self._give_up)
        if self._ipam and not ipam and self._command == "DEL":
            await self._execute_ipam()
        return printed

    def _do(
        self, call: Call, ipam: IpamPlugin | None, assigned: Result | None, valid: frozenset[tuple[str, str]]
    ) -> bytes:
        """Do what is to be done natively; return what the plugin would print. Raises NativeError."""
        match self._command:
            case "ADD":
                given = ipam.add(call) if ipam else assigned
                if self._given_up:
                    raise NativeError("nobody waits for it any more")
                return self._printed(self._plugin.add(call, given))
            case "CHECK":
                if ipam:
                    ipam.check(call)
                self._plugin.check(call)
            case "DEL":
                # An address is free for others only when it is out of use.
                self._plugin.delete(call)
                if ipam:
                    ipam.delete(call)
            case "GC":
                # As with DEL.
                if collecting := collecting_plugin(self._plugin.TYPE):
                    collecting.collect(call, valid)
                if ipam:
                    ipam.collect(call, valid)
            case "STATUS" if ipam:
                ipam.status(call)
            case _:
                pass
        return b""

    def _give_up(self) -> None:
        self._given_up = True

    def _printed(self, result: Result) -> bytes:
        try:
            return results.encode(result, self._version).encode()
        except results.ResultError as error:
            raise NativeError(str(error)) from error

    def refusal(self, error: NativeError) -> bytes:
        """Return the error object that the plugin would print."""
        return msgspec.json.encode({"cniVersion": self._version, "code": error.code, "msg": str(error)})

    def _call(self) -> Call:
        try:
            args = parse_args(self._env.get("CNI_ARGS", ""))
        except RequestFailedError as error:
            raise NativeError(error.failure.message, error.failure.code) from error
        return Call(
            container_id=self._env.get("CNI_CONTAINERID", ""),
            netns=self._env.get("CNI_NETNS", ""),
            ifname=self._env.get("CNI_IFNAME", ""),
            config=self._config,
            args=args,
            prev_result=_previous(self._previous, self._version),
        )

    def _assigned(self, printed: bytes) -> Result | None:
        """Return what an IPAM plugin that was executed has assigned, if that was asked for."""
        if self._command != "ADD":
            return None
        try:
            return results.decode(printed.decode(), self._version)
        except ValueError as error:
            raise NativeError(f"IPAM plugin {self._ipam} printed no usable result: {error}") from error

    async def _execute_ipam(self) -> bytes:
        run, stdout = await self._runner.execute(
            self._ipam,
            command=self._command,
            env=self._env,
            stdin=self._stdin,
            search=self._search,
            timeout=self._deadline - asyncio.get_running_loop().time(),
        )
        if run.exit_code:
            said = complaint(run, stdout)
            raise NativeError(f"IPAM plugin {self._ipam}: {said.message}", said.code or _GENERIC)
        return stdout


def _valid_attachments(listed: Any) -> frozenset[tuple[str, str]]:
    """Return what is to be kept. Raises NativeError where nobody says what that is, or not in a way to rely on."""
    try:
        attachments = convert(listed, tuple[_Attachment, ...])
    except msgspec.ValidationError as error:
        message = f"{_VALID_ATTACHMENTS} can't be used, so nothing is freed: {error}"
        raise NativeError(message, _INVALID_CONFIG) from None
    return frozenset((each.container_id, each.ifname) for each in attachments)


def _previous(previous: Any, version: str) -> Result | None:
    if previous is None:
        return None
    try:
        return results.decode(msgspec.json.encode(previous).decode(), version)
    except results.ResultError as error:
        raise NativeError(f"prevResult can't be read: {error}", _UNDECODABLE) from error
