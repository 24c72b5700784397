"""Do one verb of a native plugin, and of the IPAM plugin that it delegates to, in the calling thread.

A job holds what a process would find in its environment and on its standard input (CNI specification 1.1, section 4).
``nodeworker.plugins.native.pool`` sends jobs to processes that may block.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

import msgspec
import structlog
from msgspec.structs import replace

from events.process.decoding import convert
from events.schema import Pod
from nodeworker.errors import RequestFailedError
from nodeworker.plugins.native import registry
from nodeworker.plugins.native.api import GENERIC, INVALID_CONFIG, Call, InterfacePlugin, IpamPlugin, NativeError
from nodeworker.plugins.native.kit.endpoints import remove_links
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.cni_args import parse_args, pod_of
from nodeworker.plugins.spec.results import Result
from nodeworker.plugins.spec.versions import UNSTATED

log = structlog.get_logger(__name__)

LOCK_TIMEOUT = 0.02
"""Seconds that a plugin waits for a lock of another process: other jobs wait too, and the pool retries this one."""
_INVALID_ENVIRONMENT, _IO_FAILURE, _UNDECODABLE = 4, 5, 6
_VERBS = frozenset({"ADD", "CHECK", "DEL", "GC", "STATUS"})
_VALID_ATTACHMENTS = "cni.dev/valid-attachments"
_OLD_VALID_ATTACHMENTS = "cni.dev/attachments"


class PluginJob(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One verb of one plugin; the fields are those of a process' environment and standard input."""

    plugin_type: str
    command: str
    env: Mapping[str, str]
    stdin: bytes
    ipam_type: str = ""
    """Type of the IPAM plugin that takes part natively; empty: none does."""
    ipam_result: Result | None = None
    """What an executed IPAM plugin has assigned."""

    @property
    def container_id(self) -> str:
        """Empty for a verb that is about a network."""
        return self.env.get("CNI_CONTAINERID", "")

    @property
    def retry_group(self) -> str:
        """Jobs of one group are retried in order: those of a container. Empty: the job waits for no other."""
        return self.container_id

    @property
    def pod(self) -> Pod:
        """The pod, as the runtime named it."""
        return pod_of(self.env.get("CNI_ARGS", ""))


class LinkRemoval(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Interfaces of a container that are removed together."""

    netns: str
    ifnames: tuple[str, ...]

    @property
    def container_id(self) -> str:
        """Empty: it is not known here."""
        return ""

    @property
    def retry_group(self) -> str:
        """Empty: it need not wait for other jobs of the container."""
        return ""

    @property
    def pod(self) -> Pod:
        """An empty one: it is not known here."""
        return Pod()


Job: TypeAlias = PluginJob | LinkRemoval


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a job."""

    stdout: bytes = b""
    """What the plugin would print."""
    error: str = ""
    """Why the job failed; empty: it succeeded."""
    code: int = 0
    """CNI error code of the failure."""
    attempted: bool = True
    """False, with ``TRY_AGAIN``: an earlier job of the same container must be retried first."""
    mtu: int = 0
    """Of the container's interface, after an ADD."""
    seconds: float = 0.0
    ipam_seconds: float = 0.0
    """The part of ``seconds`` that the IPAM plugin took."""


class _Attachment(msgspec.Struct, frozen=True):
    """An attachment that GC must keep (CNI specification 1.1, section 2, "GC")."""

    container_id: str = msgspec.field(name="containerID")
    ifname: str


class _Prepared(NamedTuple):
    plugin: InterfacePlugin
    ipam_plugin: IpamPlugin | None
    call: Call
    valid: Any
    """The list of attachments to keep, in a GC."""


def perform(job: Job) -> JobResult:
    """Do *job* in the calling thread."""
    started = time.perf_counter()
    try:
        if isinstance(job, LinkRemoval):
            remove_links(job.netns, job.ifnames)
            return JobResult(seconds=time.perf_counter() - started)
        plugin, ipam_plugin, call, valid = _prepare(job)
        result = JobResult()
        match job.command:
            case "ADD":
                ipam_started = time.perf_counter()
                ipam_result = ipam_plugin.add(call) if ipam_plugin else job.ipam_result
                ipam_seconds = time.perf_counter() - ipam_started
                result = _add_result(call, plugin.add(call, ipam_result), ipam_seconds)
            case "DEL":  # an address is free for others only once it is out of use
                plugin.delete(call)
                if ipam_plugin:
                    ipam_plugin.delete(call)
            case "CHECK":
                if ipam_plugin:
                    ipam_plugin.check(call)
                plugin.check(call)
            case "GC":
                _collect(job.plugin_type, ipam_plugin, call, _valid_attachments(valid))
            case _:  # STATUS
                if ipam_plugin:
                    ipam_plugin.status(call)
        return replace(result, seconds=time.perf_counter() - started)
    except NativeError as error:
        return JobResult(error=str(error), code=error.code)
    except OSError as error:  # most likely the node has no descriptor or memory left
        return JobResult(
            error=f"a system call failed on the node: {error.strerror or error}: check its open files and memory",
            code=_IO_FAILURE,
        )
    except Exception as error:  # rule: one bad request never stops the others
        log.exception("native_plugin_broke")
        return JobResult(error=f"Plumbline itself is at fault: {error!r}", code=GENERIC)


def without_new_mtus(result: Result, before: Result | None) -> Result:
    """Return *result* as the reference plugins print it: with only those MTUs that the result *before* it has, too."""
    with_mtu = {(each.name, each.sandbox) for each in (before.interfaces if before else ()) if each.mtu}
    interfaces = (each if (each.name, each.sandbox) in with_mtu else replace(each, mtu=0) for each in result.interfaces)
    return replace(result, interfaces=tuple(interfaces))


def version_of(config: Mapping[str, Any]) -> str:
    """Return the version that *config* requests for results."""
    return config.get("cniVersion") or UNSTATED


def _prepare(job: PluginJob) -> _Prepared:
    """Return the plugins of *job* and their call. Raises NativeError."""
    if job.command not in _VERBS:
        raise NativeError(f"{job.command} is not a CNI verb", _INVALID_ENVIRONMENT)
    plugin = registry.interface_plugin(job.plugin_type)
    if plugin is None:
        raise NativeError(f"plugin {job.plugin_type} has no native form")
    ipam_plugin = registry.ipam_plugin(job.ipam_type) if job.ipam_type else None
    config = cast("dict[str, Any]", msgspec.json.decode(job.stdin))
    previous, valid = config.pop("prevResult", None), config.pop(_VALID_ATTACHMENTS, None)
    config.pop(_OLD_VALID_ATTACHMENTS, None)
    return _Prepared(plugin, ipam_plugin, _call(job, config, previous), valid)


def _add_result(call: Call, result: Result, ipam_seconds: float) -> JobResult:
    """Return the result of an ADD. Raises NativeError for one that the version can't express."""
    mtu = next((each.mtu for each in result.interfaces if each.sandbox and each.name == call.ifname), 0)
    try:
        text = results.encode(without_new_mtus(result, call.prev_result), version_of(call.config))
    except results.ResultError as error:
        raise NativeError(str(error)) from error
    return JobResult(stdout=text.encode(), mtu=mtu, ipam_seconds=ipam_seconds)


def _collect(plugin_type: str, ipam_plugin: IpamPlugin | None, call: Call, valid: Collection[tuple[str, str]]) -> None:
    if collecting := registry.collecting_plugin(plugin_type):
        collecting.collect(call, valid)
    if ipam_plugin:  # as with DEL: addresses last
        ipam_plugin.collect(call, valid)


def _call(job: PluginJob, config: dict[str, Any], previous: Any) -> Call:
    try:
        args = parse_args(job.env.get("CNI_ARGS", ""))
    except RequestFailedError as error:
        raise NativeError(error.failure.message, error.failure.code) from error
    return Call(
        container_id=job.env.get("CNI_CONTAINERID", ""),
        netns=job.env.get("CNI_NETNS", ""),
        ifname=job.env.get("CNI_IFNAME", ""),
        config=config,
        args=args,
        prev_result=_previous(previous, version_of(config)),
        lock_timeout=LOCK_TIMEOUT,
    )


def _valid_attachments(listed: Any) -> frozenset[tuple[str, str]]:
    """Return the attachments that GC must keep. Raises NativeError unless there is a list that can be read."""
    try:
        attachments = convert(listed, tuple[_Attachment, ...])
    except msgspec.ValidationError as error:
        message = f"{_VALID_ATTACHMENTS} can't be decoded, so nothing is freed: {error}"
        raise NativeError(message, INVALID_CONFIG) from None
    return frozenset((each.container_id, each.ifname) for each in attachments)


def _previous(previous: Any, version: str) -> Result | None:
    if previous is None:
        return None
    try:
        return results.decode(msgspec.json.encode(previous).decode(), version)
    except results.ResultError as error:
        raise NativeError(f"prevResult can't be read: {error}", _UNDECODABLE) from error
