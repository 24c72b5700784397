"""One verb of one native plugin, and of the IPAM plugin that it delegates to, from what a process would be given.

CNI specification 1.1, section 4. ``nodeworker.plugins.native.pool`` has it done where it may block.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import msgspec
import structlog
from msgspec.structs import replace

from events.process.decoding import convert
from nodeworker.errors import RequestFailedError
from nodeworker.plugins.native.api import GENERIC, TRY_AGAIN, Call, InterfacePlugin, IpamPlugin, NativeError
from nodeworker.plugins.native.kit.endpoints import all_taken_away, kept_open
from nodeworker.plugins.native.registry import collecting_plugin, interface_plugin, ipam_plugin
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.cni_args import parse_args
from nodeworker.plugins.spec.results import Result
from nodeworker.plugins.spec.versions import UNSTATED

log = structlog.get_logger(__name__)

BRIEFLY = 0.02
"""Seconds that a plugin waits for what others hold: other work waits too, and who asked comes back."""
_INVALID_ENVIRONMENT, _IO_FAILURE, _UNDECODABLE, _INVALID_CONFIG = 4, 5, 6, 7
_VERBS = frozenset({"ADD", "CHECK", "DEL", "GC", "STATUS"})
_VALID_ATTACHMENTS = "cni.dev/valid-attachments"
_OLD_VALID_ATTACHMENTS = "cni.dev/attachments"


class Work(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a plugin is to do; the fields are those of a process' environment and standard input."""

    plugin: str
    command: str
    env: Mapping[str, str]
    stdin: bytes
    ipam: str = ""
    """Type of the IPAM plugin that takes part natively; empty: none does."""
    assigned: Result | None = None
    """What an IPAM plugin that was executed has assigned."""


class Clearing(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Interfaces of a container that are to be taken away together."""

    netns: str
    ifnames: tuple[str, ...]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    stdout: bytes = b""
    """What the plugin would print."""
    refusal: str = ""
    """Why it could not be done; empty: it was."""
    code: int = 0
    """Of the refusal."""
    begun: bool = True
    """False, with ``TRY_AGAIN``: one for the same container that came before has to be tried again first."""
    mtu: int = 0
    """Of the container's interface, after an ADD."""
    seconds: float = 0.0
    ipam_seconds: float = 0.0
    """What of them the IPAM plugin took."""


class _Attachment(msgspec.Struct, frozen=True):
    """One of those that GC is told to keep (CNI specification 1.1, section 2, "GC")."""

    container_id: str = msgspec.field(name="containerID")
    ifname: str


def perform_all(asked: Iterable[Work | Clearing]) -> Iterator[Done]:
    """Do what is *asked*, one after another, and yield what came of each.

    Behind one that has to be tried again nothing is begun for the same container, so that the order stays.
    """
    held_up: set[str] = set()
    with kept_open():
        for each in asked:
            container = each.env.get("CNI_CONTAINERID", "") if isinstance(each, Work) else ""
            if container in held_up:
                yield Done(code=TRY_AGAIN, begun=False)
                continue
            try:
                done = perform(each)
            except Exception as error:  # rule: one bad request never stops the others
                log.exception("native_plugin_broke")
                done = Done(refusal=f"Plumbline itself is at fault: {error!r}", code=GENERIC)
            if container and done.code == TRY_AGAIN:
                held_up.add(container)
            yield done


def perform(asked: Work | Clearing) -> Done:
    """Do what is *asked*, in the calling thread."""
    started = time.perf_counter()
    clock = _Clock()
    try:
        if isinstance(asked, Clearing):
            all_taken_away(asked.netns, asked.ifnames)
            done = Done()
        else:
            done = _performed(asked, clock)
    except NativeError as error:
        return Done(refusal=str(error), code=error.code)
    except OSError as error:
        # What the plugin did not foresee: no descriptor or memory is left, most likely.
        return Done(refusal=f"the node does not let it work: {error.strerror or error}", code=_IO_FAILURE)
    return replace(done, seconds=time.perf_counter() - started, ipam_seconds=clock.seconds)


class _Clock:
    """Adds up the time within it."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started


def printed(result: Result, before: Result | None) -> Result:
    """Return *result* as the reference plugins print it: with those MTUs only that the result *before* tells too."""
    told = {(each.name, each.sandbox) for each in (before.interfaces if before else ()) if each.mtu}
    interfaces = (each if (each.name, each.sandbox) in told else replace(each, mtu=0) for each in result.interfaces)
    return replace(result, interfaces=tuple(interfaces))


def _performed(work: Work, clock: _Clock) -> Done:
    """Do it, and return what came of it but for the times. Raises NativeError."""
    if work.command not in _VERBS:
        raise NativeError(f"{work.command} is no verb of CNI", _INVALID_ENVIRONMENT)
    plugin = interface_plugin(work.plugin)
    if plugin is None:
        raise NativeError(f"plugin {work.plugin} is not one that Plumbline has built in")
    ipam = ipam_plugin(work.ipam) if work.ipam else None
    config = cast("dict[str, Any]", msgspec.json.decode(work.stdin))
    previous, valid = config.pop("prevResult", None), config.pop(_VALID_ATTACHMENTS, None)
    config.pop(_OLD_VALID_ATTACHMENTS, None)
    call = _call(work, config, previous)
    match work.command:
        case "ADD":
            return _added(work, plugin, ipam, call, clock)
        case "CHECK":
            if ipam:
                ipam.check(call)
            plugin.check(call)
        case "DEL":
            # An address is free for others only when it is out of use.
            plugin.delete(call)
            if ipam:
                ipam.delete(call)
        case "GC":
            kept = _valid_attachments(valid)
            # As with DEL.
            if collecting := collecting_plugin(work.plugin):
                collecting.collect(call, kept)
            if ipam:
                ipam.collect(call, kept)
        case "STATUS" if ipam:
            ipam.status(call)
        case _:
            pass
    return Done()


def _added(work: Work, plugin: InterfacePlugin, ipam: IpamPlugin | None, call: Call, clock: _Clock) -> Done:
    assigned = work.assigned
    if ipam:
        with clock:
            assigned = ipam.add(call)
    result = plugin.add(call, assigned)
    mtu = next((each.mtu for each in result.interfaces if each.sandbox and each.name == call.ifname), 0)
    try:
        text = results.encode(printed(result, call.prev_result), version_of(call.config))
    except results.ResultError as error:
        raise NativeError(str(error)) from error
    return Done(stdout=text.encode(), mtu=mtu)


def version_of(config: Mapping[str, Any]) -> str:
    """Return the version that *config* asks for results in."""
    return config.get("cniVersion") or UNSTATED


def _call(work: Work, config: dict[str, Any], previous: Any) -> Call:
    try:
        args = parse_args(work.env.get("CNI_ARGS", ""))
    except RequestFailedError as error:
        raise NativeError(error.failure.message, error.failure.code) from error
    return Call(
        container_id=work.env.get("CNI_CONTAINERID", ""),
        netns=work.env.get("CNI_NETNS", ""),
        ifname=work.env.get("CNI_IFNAME", ""),
        config=config,
        args=args,
        prev_result=_previous(previous, version_of(config)),
        patience=BRIEFLY,
    )


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
