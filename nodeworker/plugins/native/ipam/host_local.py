"""The ``host-local`` IPAM plugin: assigns addresses of the node's own ranges.

It shares its folder with the executed plugin, so each can free the other's addresses. Intended differences: a repeated
ADD gets the same addresses, one lock covers all addresses of an ADD, a DEL works with invalid ranges, and an address
that can't be freed is an error.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec
import structlog

from nodeworker.plugins.native.api import INVALID_CONFIG, TRY_AGAIN, Call, NativeError
from nodeworker.plugins.native.ipam import availability, ipam_config, reservations
from nodeworker.plugins.native.ipam.ranges import Range, RangeConfig, RangeSet, candidates, range_of, range_sets, shown
from nodeworker.plugins.native.ipam.resolv_conf import resolver
from nodeworker.plugins.spec.addresses import Address, address, with_prefix
from nodeworker.plugins.spec.names import each_at
from nodeworker.plugins.spec.results import DNS, IP, Result, Route

TYPE = "host-local"

DATA_DIR = "/var/lib/cni/networks"
"""The default of ``dataDir``: the folder of the networks' folders."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_OWNER = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.\-]*\r\n[^\s/]{1,15}")
"""Content of a reservation: container ID and interface name."""
_IO_FAILURE, _NOT_AVAILABLE = 5, 50

log = structlog.get_logger(__name__)


class _HostLocal(RangeConfig, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The ``ipam`` object; its own keys may describe the first range."""

    type: str = TYPE
    name: str = ""
    routes: tuple[ipam_config.RouteConfig, ...] = ()
    data_dir: str = ""
    resolv_conf: str = ""
    ranges: tuple[tuple[RangeConfig, ...], ...] = ()


class _RuntimeConfig(ipam_config.RuntimeConfig, frozen=True):
    ip_ranges: tuple[tuple[RangeConfig, ...], ...] = msgspec.field(default=(), name="ipRanges")


class _Net(ipam_config.IpamNetConf, frozen=True, kw_only=True, rename="camel"):
    ipam: _HostLocal
    runtime_config: _RuntimeConfig = _RuntimeConfig()


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    """The parsed request of an ADD."""

    range_sets: tuple[RangeSet, ...]
    requested: tuple[Address | None, ...]
    """The requested address for each range set, None for any."""
    routes: tuple[Route, ...]
    dns: DNS


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only the reference plugin supports, or an empty text."""
    net = ipam_config.misfit(config, _Net)
    if isinstance(net, str):
        return net
    return "dataDir is not an absolute path" if net.ipam.data_dir and not os.path.isabs(net.ipam.data_dir) else ""


def add(call: Call) -> Result:
    """Reserve one address of each range set and return the result. Raises NativeError."""
    net = _load(call)
    request = _request(call, net)
    with _folder(call, net, _owner(call)) as folder:
        assigned = _assign(folder, call, request)
    return Result(
        cni_version=net.cni_version,
        ips=tuple(
            IP(address=f"{each}/{of.subnet.prefixlen}", gateway=str(of.gateway)) for each, of in assigned.items()
        ),
        routes=request.routes,
        dns=request.dns,
    )


def check(call: Call) -> None:
    """Raise NativeError unless an address is reserved for the interface."""
    with contextlib.suppress(FileNotFoundError), _folder(call, _load(call)) as folder:
        if folder.held_by(_owner(call)) or folder.held_by(_old_owner(call)):
            return
    raise NativeError(
        f"host-local has no address of network {call.network} for interface {call.ifname}: recreate the pod"
    )


def delete(call: Call) -> None:
    """Free the addresses of the interface. Missing ones, or a missing folder, are no error. Raises NativeError."""
    with contextlib.suppress(FileNotFoundError), _folder(call, _load(call)) as folder:
        for owner in (_owner(call), _old_owner(call)):
            if held := folder.held_by(owner):
                _free(folder, held, owner)
                return


def status(call: Call) -> None:
    """Raise NativeError unless each range set has a free address and the folder is usable."""
    net = _load(call)
    try:
        sets = _range_sets(net) if net.ipam.subnet or net.ipam.ranges or not _with_each_add(call) else ()
    except ValueError as error:
        raise NativeError(f"host-local can't serve network {call.network}: {error}", INVALID_CONFIG) from None
    if reason := availability.obstacle(_path(net), sets):
        raise NativeError(f"host-local can't serve network {call.network}: {reason}", _NOT_AVAILABLE)


def collect(call: Call, valid: Collection[tuple[str, str]]) -> None:
    """Free the network's addresses whose interface is not in *valid*: (container ID, interface name).

    Other files stay, such as the reservations of plugins before 0.8, which name no interface. Raises NativeError.
    """
    valid_owners = {reservations.owner(container_id, ifname) for container_id, ifname in valid}
    with contextlib.suppress(FileNotFoundError), _folder(call, _load(call)) as folder:
        for each, owner in folder.reservations().items():
            if owner not in valid_owners and _OWNER.fullmatch(owner) and folder.free(each, owner):
                container_id, ifname = owner.decode().split("\r\n")
                log.info(
                    "address_freed", network=call.network, sandbox=container_id[:12], ifname=ifname, address=str(each)
                )


def _load(call: Call) -> _Net:
    try:
        net = ipam_config.decode(call.config, _Net)
    except ValueError as error:
        raise _refusal(call, error) from None
    if not _NAME.fullmatch(net.name):
        raise NativeError(
            f"{net.name!r} is not a usable network name for host-local: use letters, digits, '_', '.' and '-'",
            INVALID_CONFIG,
        )
    return net


def _request(call: Call, net: _Net) -> _Request:
    try:
        sets = _range_sets(net)
        ipam_config.refuse_many(net.cni_version, (members[0].subnet.version for members in sets))
        in_args = ipam_config.cni_args(call, ("IP",)).get("IP", "")
        asked = (*((in_args,) if in_args else ()), *net.args.cni.ips, *net.runtime_config.ips)
        return _Request(
            range_sets=sets,
            requested=_matched(each_at("ips", asked, _requested), sets),
            routes=ipam_config.routes(net.ipam.routes),
            dns=resolver(net.ipam.resolv_conf) if net.ipam.resolv_conf else DNS(),
        )
    except ValueError as error:
        raise _refusal(call, error) from None
    except OSError as error:
        raise _refusal(call, f"resolvConf {net.ipam.resolv_conf} can't be read: {error.strerror}") from error


def _range_sets(net: _Net) -> tuple[RangeSet, ...]:
    old_style = ((RangeConfig(**{name: getattr(net.ipam, name) for name in RangeConfig.__struct_fields__}),),)
    return range_sets((*net.runtime_config.ip_ranges, *(old_style if net.ipam.subnet else ()), *net.ipam.ranges))


def _with_each_add(call: Call) -> bool:
    """Return whether the runtime supplies the ranges, which it does only for an ADD."""
    capabilities = call.config.get("capabilities")
    return isinstance(capabilities, dict) and bool(capabilities.get("ipRanges"))


def _requested(text: str) -> Address:
    return with_prefix(text).ip if "/" in text else address(text)


def _matched(requested: Iterable[Address], sets: tuple[RangeSet, ...]) -> tuple[Address | None, ...]:
    """Return for each range set the first *requested* address in it. Raises ValueError if an address fits no set."""
    left = list(dict.fromkeys(requested))
    matched: list[Address | None] = []
    for ranges in sets:
        found = next((each for each in left if range_of(ranges, each)), None)
        if found is not None:
            left.remove(found)
        matched.append(found)
    if left:
        raise ValueError(f"requested {', '.join(map(str, left))}, which fits no unused range set")
    return tuple(matched)


def _assign(folder: reservations.Folder, call: Call, request: _Request) -> dict[Address, Range]:
    """Return an address of each range set, reserved now or by an interrupted ADD. Raises NativeError, OSError."""
    owner = _owner(call)
    held = folder.held_by(owner)
    assigned: dict[Address, Range] = {}
    try:
        for number, (ranges, requested) in enumerate(zip(request.range_sets, request.requested, strict=True)):
            mine = next((each for each in held if requested in {None, each} and range_of(ranges, each)), None)
            chosen = _reserve(folder, call, number, ranges, requested) if mine is None else mine
            of = range_of(ranges, chosen)
            assert of is not None
            assigned[chosen] = of
    except (NativeError, OSError):
        # The DEL that follows frees what this can't.
        with contextlib.suppress(OSError):
            _free(folder, set(folder.held_by(owner)) - set(held), owner)
        raise
    _free(folder, set(held) - set(assigned), owner)
    return assigned


def _reserve(
    folder: reservations.Folder, call: Call, number: int, ranges: RangeSet, requested: Address | None
) -> Address:
    """Reserve and return an address of *ranges*, the range set with index *number*. Raises NativeError, OSError."""
    if requested is not None:
        offered = iter([requested])
        of = range_of(ranges, requested)
        if of is not None and requested == of.gateway:
            raise _refusal(call, f"requested address {requested} is the gateway's")
    else:
        if any(range_of(ranges, each) for each in folder.held_by(_old_owner(call))):
            # A reservation of plugins before 0.8 may belong to another interface.
            raise _refusal(call, f"container {call.container_id} has an address in {shown(ranges)} already")
        offered = candidates(ranges, folder.last_reserved(number))
    for each in offered:
        if folder.reserve(each, _owner(call)):
            folder.remember(number, each)
            return each
    if requested is not None:
        raise _refusal(call, f"requested address {requested} is taken")
    raise _refusal(call, f"all addresses of {shown(ranges)} are taken: detach pods, or make the range larger")


def _free(folder: reservations.Folder, held: Iterable[Address], owner: bytes) -> None:
    for each in held:
        folder.free(each, owner)


def _owner(call: Call) -> bytes:
    return reservations.owner(call.container_id, call.ifname)


def _old_owner(call: Call) -> bytes:
    """Return the content of a reservation by plugins before 0.8, which names no interface."""
    return call.container_id.encode()


@contextlib.contextmanager
def _folder(call: Call, net: _Net, owner: bytes | None = None) -> Iterator[reservations.Folder]:
    """Lock the network's folder, created for an *owner*. Raises NativeError; without *owner* FileNotFoundError."""
    path = _path(net)
    try:
        with reservations.locked(path, owner=owner, timeout=call.lock_timeout) as folder:
            yield folder
    except reservations.BusyError as error:
        raise NativeError(f"host-local can't use network {call.network} now: {error}; try again", TRY_AGAIN) from None
    except OSError as error:
        if owner is None and isinstance(error, FileNotFoundError):
            raise
        raise NativeError(
            f"host-local can't use {path} for network {call.network}: {error.strerror}; repair the file system",
            _IO_FAILURE,
        ) from error


def _path(net: _Net) -> str:
    return os.path.join(net.ipam.data_dir or DATA_DIR, net.name)


def _refusal(call: Call, reason: ValueError | str) -> NativeError:
    return NativeError(f"host-local can't assign an address of network {call.network} to {call.ifname}: {reason}")
