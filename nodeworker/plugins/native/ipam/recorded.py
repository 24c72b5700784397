"""The reservations that host-local has made, by the ledger: derived from an attachment's plan and result.

They are the same whether host-local was executed or native. ``restore`` makes those that were lost.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from events.schema import ContainerId, Drift, DriftKind, IfName, NetworkName, PlannedAttachment
from nodeworker.errors import usable_container_id
from nodeworker.plugins.native.ipam import reservations
from nodeworker.plugins.native.ipam.host_local import DATA_DIR, TYPE
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.addresses import Address, Network, address, network, with_prefix
from nodeworker.plugins.spec.names import ifname_problem


class AddressFolder(NamedTuple):
    """The folder in which host-local reserves the addresses of one network."""

    path: str
    network: str
    """Its name in the plugin's configuration."""


class Reservation(NamedTuple):
    """An address that is reserved for an interface."""

    folder: str
    address: str
    """Name of its file."""
    container_id: ContainerId
    ifname: IfName

    @property
    def path(self) -> str:
        """The path of its file."""
        return f"{self.folder}/{self.address}"

    def is_kept_by(self, content: bytes) -> bool:
        """Return whether a file with *content* makes the reservation."""
        return holder_of(content) in ((self.container_id, self.ifname), (self.container_id, ""))


class _Range(msgspec.Struct, frozen=True):
    subnet: str = ""


class _Ipam(msgspec.Struct, frozen=True):
    type: str = ""
    data_dir: str = msgspec.field(default="", name="dataDir")
    subnet: str = ""
    ranges: tuple[tuple[_Range, ...], ...] | None = None


class _RuntimeConfig(msgspec.Struct, frozen=True):
    ranges: tuple[tuple[_Range, ...], ...] | None = msgspec.field(default=None, name="ipRanges")


class _Plugin(msgspec.Struct, frozen=True):
    name: str = ""
    ipam: _Ipam = _Ipam()
    runtime_config: _RuntimeConfig | None = msgspec.field(default=None, name="runtimeConfig")


_plugin = msgspec.json.Decoder(_Plugin)


def folder_of(plugin: str) -> AddressFolder | None:
    """Return host-local's folder for the network of the configuration *plugin*; None: it uses another IPAM plugin."""
    found = _parsed(plugin)
    return None if found is None else found[0]


def folders_of(plan: PlannedAttachment) -> Iterator[AddressFolder]:
    """Yield the folders from which the plugins of *plan* get addresses."""
    for plugin in plan.plugins:
        if TYPE in plugin and (folder := folder_of(plugin)) is not None:
            yield folder


def reservations_of(plan: PlannedAttachment, result: str, container_id: ContainerId) -> tuple[Reservation, ...]:
    """Return the reservations of the attachment of *plan* in that container, whose ADD returned *result*."""
    if not result:
        return ()
    used = [found for plugin in plan.plugins if TYPE in plugin and (found := _parsed(plugin)) is not None]
    if not used:
        return ()
    try:
        ips = results.decode(result, plan.cni_version).ips_of(plan.ifname)
    except results.ResultError:
        return ()
    addresses = dict.fromkeys(with_prefix(ip.address).ip for ip in ips)
    return tuple(
        Reservation(folder.path, str(each), container_id, plan.ifname)
        for folder, subnets in used
        for each in addresses
        if _is_of(each, subnets)
    )


def holder_of(content: bytes) -> tuple[ContainerId, IfName]:
    """Return the owner in a file of host-local; empty if it is torn. Plugins before 0.8 wrote no interface name."""
    try:
        holder, _, ifname = content.decode().strip().partition("\r\n")
    except UnicodeDecodeError:
        return ContainerId(""), IfName("")
    if not usable_container_id(holder) or (ifname and ifname_problem(ifname)):
        return ContainerId(""), IfName("")
    return ContainerId(holder), IfName(ifname)


def missing(reservation: Reservation, network: NetworkName, found: str = "") -> Drift:
    """Return the drift of a *reservation* in *network* without a file, or with one that contains *found*."""
    return Drift(
        kind=DriftKind.RESERVATION_MISSING,
        network=network,
        ifname=reservation.ifname,
        expected=reservation.address,
        found=found,
    )


def restore(
    folder: str,
    lost: Iterable[Reservation],
    may_replace: Callable[[Reservation, bytes], bool] = lambda *_: False,
) -> list[Reservation]:
    """Make the *lost* reservations of *folder* again, under its lock, and return those that could not be made.

    A file without an owner is replaced; one with another owner only if *may_replace* returns True for the reservation
    and the file's content. Blocking. Raises OSError, ``reservations.BusyError``.
    """
    os.makedirs(folder, mode=0o755, exist_ok=True)
    with reservations.locked(folder) as locked:
        return [each for each in lost if not _restore_one(locked, each, may_replace)]


def _restore_one(
    folder: reservations.Folder, lost: Reservation, may_replace: Callable[[Reservation, bytes], bool]
) -> bool:
    wanted, owner = address(lost.address), reservations.owner(lost.container_id, lost.ifname)
    if folder.reserve(wanted, owner):
        return True
    content = folder.owner_of(wanted)
    if lost.is_kept_by(content):
        return True
    if holder_of(content)[0] and not may_replace(lost, content):
        return False
    return folder.free(wanted, content) and folder.reserve(wanted, owner)


@functools.lru_cache(128)
def _parsed(plugin: str) -> tuple[AddressFolder, tuple[Network, ...]] | None:
    """Return the folder and the subnets of a configuration with host-local. Most pods of a network have the same."""
    try:
        config = _plugin.decode(plugin)
    except msgspec.MsgspecError:
        return None
    ipam = config.ipam
    path = ipam.data_dir or DATA_DIR
    if ipam.type != TYPE or not path.startswith("/") or "/" in config.name or not config.name:
        return None
    offered = config.runtime_config.ranges if config.runtime_config else None
    members = (each for ranges in (*(ipam.ranges or ()), *(offered or ())) for each in ranges)
    subnets = (ipam.subnet, *(each.subnet for each in members))
    return AddressFolder(os.path.normpath(f"{path}/{config.name}"), config.name), tuple(
        _networks(filter(None, subnets))
    )


def _networks(texts: Iterable[str]) -> Iterator[Network]:
    for text in texts:
        with contextlib.suppress(ValueError):
            yield network(text)


def _is_of(address: Address, subnets: tuple[Network, ...]) -> bool:
    """Return whether host-local may have given *address*: a later plugin of the chain may have added others."""
    return not subnets or any(address in subnet for subnet in subnets)
