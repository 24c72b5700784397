"""Assign devices to attachments: the n-th attachment that uses a resource gets the pod's n-th device of it.

Pure. The count of a resource runs over all attachments of the pod, including the default network, so that no two share
a device.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from events.schema import ErrorClass, Phase
from nodeworker.errors import RequestFailedError, failed
from nodeworker.planning.resolve.device_use import DeviceUse, Shortage, shortage
from nodeworker.planning.resolve.networks import NetworkEntry
from nodeworker.planning.resolve.objects import RESOURCE_NAME, Nad, NetworkRef
from nodeworker.plugins.spec.names import is_object_name, shown

INFO_FOLDER = "/var/run/k8s.cni.cncf.io/devinfo"
"""The folder in which device plugins, CNI plugins and programs in pods expect the files (Device Information 1.1.0)."""
MAX_ID = 128

_ID = re.compile(r"[!-.0-~]+")
_NAME = re.compile(r"[A-Za-z0-9](?:[-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_FILE_NAME_BYTES = 255


class AssignedDevice(NamedTuple):
    """The device of one attachment; both fields are empty for a network without a resource."""

    resource: str = ""
    device: str = ""
    """Empty if the pod's annotation names a device instead of an allocated one, or if there is none of the resource."""


def is_device_id(text: str) -> bool:
    """Return whether *text* can be the ID of a device, which becomes part of a file name."""
    return len(text) <= MAX_ID and _ID.fullmatch(text) is not None and not text.startswith("..")


def resource_counts(entries: Sequence[NetworkEntry], networks: Mapping[NetworkRef, Nad]) -> dict[str, int]:
    """Return how many attachments use each resource. Raises RequestFailedError (INVALID_CONFIG)."""
    return dict(Counter(resource for entry in entries if (resource := _resource(entry, networks))))


def assign(
    entries: Sequence[NetworkEntry],
    networks: Mapping[NetworkRef, Nad],
    devices: Mapping[str, tuple[str, ...]],
    uses: Sequence[DeviceUse],
) -> list[AssignedDevice]:
    """Return the device of each of *entries*; *devices* are the pod's, by resource; *uses* are of the same networks.

    If no device is left, the ``deviceID`` of the pod's annotation is used, as in Multus. Raises RequestFailedError:
    DEVICE_UNAVAILABLE if there is none either and ``shortage`` says so, INVALID_CONFIG, INVALID_ANNOTATION.
    """
    number = resource_counts(entries, networks)
    left = {resource: iter(devices.get(resource, ())) for resource in number}
    assigned: list[AssignedDevice] = []
    for entry, use in zip(entries, uses, strict=True):
        resource = _resource(entry, networks)
        device_of_entry = AssignedDevice(resource, next(left[resource], "")) if resource else AssignedDevice()
        if resource and not device_of_entry.device and not _named(entry):
            present = len(devices.get(resource, ()))
            if shortage(present, use) is Shortage.REFUSE:
                raise _too_few(_label(entry, networks), resource, present, number[resource])
        assigned.append(device_of_entry)
    return assigned


def info_path(folder: str, network: str, container_id: str, ifname: str) -> str:
    """Return the path of the device information file of an attachment, under *folder*.

    The name is the same as Multus'. The network's part of a name that is too long is cut.
    """
    unique = f"-{container_id}_{ifname}".replace("/", "-")
    return f"{folder}/cni/{network.replace('/', '-')[: max(0, _FILE_NAME_BYTES - len(unique))]}{unique}"


def _resource(entry: NetworkEntry, networks: Mapping[NetworkRef, Nad]) -> str:
    """Return the resource of the network *entry*; empty: none."""
    nad = networks.get(entry.ref) if entry.ref else None
    resource = nad.annotations.get(RESOURCE_NAME, "").strip() if nad else ""
    if not resource or _is_resource(resource):
        return resource
    label = _label(entry, networks)
    raise failed(
        ErrorClass.INVALID_CONFIG,
        Phase.RESOLVE,
        f"network {label} can't be used: its annotation {RESOURCE_NAME} is {shown(resource)}, which is "
        f"neither a resource name such as vendor.example/nic nor the name of a resource claim; correct it",
        network=label,
    )


def _is_resource(text: str) -> bool:
    """Return whether *text* is a qualified name (Kubernetes API, "Labels and Selectors", syntax) or a claim's name."""
    *domain, name = text.split("/")
    qualified = len(domain) <= 1 and all(map(is_object_name, domain)) and _NAME.fullmatch(name) is not None
    return qualified or is_object_name(text)


def _named(entry: NetworkEntry) -> bool:
    """Return whether the pod's annotation names the device."""
    device = entry.selection.device_id if entry.selection else ""
    if device and not is_device_id(device):
        raise failed(
            ErrorClass.INVALID_ANNOTATION,
            Phase.RESOLVE,
            f"network {entry.selection}: deviceID {shown(device)} is not a device ID; correct it in the annotation",
            network=str(entry.selection),
        )
    return bool(device)


def _label(entry: NetworkEntry, networks: Mapping[NetworkRef, Nad]) -> str:
    nad = networks.get(entry.ref) if entry.ref else None
    assert nad is not None
    return f"{nad.namespace}/{nad.name}" if nad.namespace else nad.name


def _too_few(network: str, resource: str, present: int, used: int) -> RequestFailedError:
    unserved = f"; if they do request it, no device plugin serves it: correct the annotation {RESOURCE_NAME}"
    return failed(
        ErrorClass.DEVICE_UNAVAILABLE,
        Phase.RESOLVE,
        f"network {network} needs a device of resource {resource}, of which the pod has {present} while its "
        f"networks use {used}; request {used} of {resource} in the pod's containers or select fewer such networks"
        f"{'' if present else unserved}",
        network=network,
    )
