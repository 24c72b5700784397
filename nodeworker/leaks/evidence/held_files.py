"""Find files that hold a resource for a container: host-local's addresses, device information, cached results.

Blocking and read-only: call it on a thread. The listing functions raise OSError for a folder that exists and can't be
read.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Iterable, Iterator

import msgspec

from events.schema import ContainerId, IfName, LeakKind
from nodeworker.leaks.judge import HeldFile
from nodeworker.plugins.native.ipam import reservations
from nodeworker.plugins.native.ipam.recorded import AddressFolder, holder_of

OUR_TYPE = "plumbline"
"""The ``type`` of Plumbline in the configurations of runtimes."""

_DEVICE_INFO = re.compile(r"(?P<network>.*)-(?P<holder>[0-9a-f]{64})_(?P<ifname>[^/\s]{1,15})")
_RESULT = re.compile(r"(?P<network>.*)-(?P<holder>[0-9a-f]{64})-(?P<ifname>[^/\s]{1,15})")
"""libcni's file name for the cached result of an ADD. Only container IDs as runtimes of pods create them match."""
_MAX_BYTES = 1 << 20


class _Plugin(msgspec.Struct, frozen=True):
    type: str = ""


class _Config(msgspec.Struct, frozen=True):
    type: str = ""
    plugins: tuple[_Plugin, ...] = ()


class _Cached(msgspec.Struct, frozen=True):
    kind: str = ""
    container_id: str = msgspec.field(default="", name="containerId")
    config: str = ""


_config = msgspec.json.Decoder(_Config)
_cached = msgspec.json.Decoder(_Cached)


def addresses(folders: Iterable[AddressFolder]) -> list[HeldFile]:
    """Return the reservations in host-local's *folders*."""
    return [held for folder in folders for name in _names(folder.path) if (held := address(folder, name)) is not None]


def address(folder: AddressFolder, name: str) -> HeldFile | None:
    """Return the reservation in the file *name* of *folder*; None: it is not a reservation, or does not exist."""
    if reservations.address_of(name) is None:
        return None
    path = f"{folder.path}/{name}"
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            return None
        with open(path, "rb") as file:
            content = file.read(reservations.LONGEST).strip()
    except OSError:
        return None
    holder, ifname = holder_of(content)
    return HeldFile(
        kind=LeakKind.ADDRESS_UNOWNED if holder else LeakKind.ADDRESS_TORN,
        path=path,
        what=name,
        holder=holder,
        ifname=ifname,
        network=folder.network,
        content=content,
        changed=status.st_mtime,
    )


def device_infos(folder: str) -> list[HeldFile]:
    """Return the files about devices of containers, under *folder*."""
    return list(_named(f"{folder}/cni", _DEVICE_INFO, LeakKind.DEVICE_INFO_STALE))


def cached_results(folder: str) -> list[HeldFile]:
    """Return the results that runtimes cache of their ADDs, of any plugin."""
    return list(_named(folder, _RESULT, LeakKind.RESULT_STALE))


def is_ours(held: HeldFile) -> bool:
    """Return whether *held* caches an ADD of Plumbline, for the container in its file name."""
    try:
        with open(held.path, "rb") as file:
            found = _cached.decode(file.read(_MAX_BYTES))
        config = _config.decode(base64.b64decode(found.config))
    except (OSError, ValueError, msgspec.MsgspecError):
        return False
    types = {config.type, *(plugin.type for plugin in config.plugins)}
    return found.kind.startswith("cniCache") and found.container_id == held.holder and OUR_TYPE in types


def timed(held: HeldFile) -> HeldFile | None:
    """Return *held* with the time of its last change; None: it is gone."""
    try:
        status = os.lstat(held.path)
    except OSError:
        return None
    return msgspec.structs.replace(held, changed=status.st_mtime) if stat.S_ISREG(status.st_mode) else None


def _named(folder: str, pattern: re.Pattern[str], kind: LeakKind) -> Iterator[HeldFile]:
    for name in _names(folder):
        if (found := pattern.fullmatch(name)) is not None:
            yield HeldFile(
                kind=kind,
                path=f"{folder}/{name}",
                what=name,
                holder=ContainerId(found["holder"]),
                ifname=IfName(found["ifname"]),
                network=found["network"],
            )


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
