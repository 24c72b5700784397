"""Read the kubelet's file of its pods' devices, for nodes without the PodResources API."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec

from events.schema import Pod
from nodeworker.planning.devices.source import Devices, DevicesUnknownError

_MAX_BYTES = 32 * 1024 * 1024


class _Entry(msgspec.Struct, frozen=True):
    pod_uid: str = msgspec.field(name="PodUID")
    container: str = msgspec.field(name="ContainerName")
    resource: str = msgspec.field(name="ResourceName")
    devices: dict[str, list[str] | None] | list[str] | None = msgspec.field(name="DeviceIDs")
    """By NUMA node; a list before Kubernetes 1.20."""


class _Data(msgspec.Struct, frozen=True):
    entries: list[_Entry] | None = msgspec.field(name="PodDeviceEntries")


class _Checkpoint(msgspec.Struct, frozen=True):
    data: _Data = msgspec.field(name="Data")


_DECODER = msgspec.json.Decoder(_Checkpoint)


def devices(path: Path, pod: Pod, socket: Path) -> Devices:
    """Return the devices of *pod*, which the file identifies by UID only; *socket* is the kubelet's missing one.

    Ordered by container name, because the file has no order. Raises DevicesUnknownError.
    """
    if not pod.uid:
        raise DevicesUnknownError(f"there is no kubelet at {socket}, and its file {path} lists pods by UID only")
    found: defaultdict[str, list[str]] = defaultdict(list)
    entries = [entry for entry in _read(path, socket) if entry.pod_uid == pod.uid]
    for entry in sorted(entries, key=lambda entry: entry.container):
        found[entry.resource] += sorted(_ids(entry))
    return {resource: tuple(ids) for resource, ids in found.items()}


def _ids(entry: _Entry) -> Iterator[str]:
    lists = entry.devices.values() if isinstance(entry.devices, dict) else (entry.devices,)
    for ids in lists:
        yield from ids or ()


def _read(path: Path, socket: Path) -> list[_Entry]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DevicesUnknownError(
            f"there is no kubelet at {socket}, and its file {path} can't be read either: {error.strerror}; mount the "
            f"kubelet's folder pod-resources into the worker, or correct worker.devices in its configuration"
        ) from error
    if len(text) > _MAX_BYTES:
        raise DevicesUnknownError(f"the kubelet's file {path} has more than {_MAX_BYTES} bytes")
    try:
        return _DECODER.decode(text).data.entries or []
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise DevicesUnknownError(
            f"the kubelet's file {path} is incomplete, or of an unknown format: {error}"
        ) from error
