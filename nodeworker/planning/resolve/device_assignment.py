"""Which attachment uses which device: the n-th that draws from a resource takes the n-th device that the pod has of it.

Pure. There is one cursor for each resource over all attachments of the pod, the default network among them, so that
no two share a device.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from events.schema import ErrorClass, Phase
from nodeworker.errors import RequestFailedError, failed
from nodeworker.planning.resolve.networks import Wanted
from nodeworker.planning.resolve.objects import RESOURCE_NAME, Nad, NetworkRef
from nodeworker.plugins.spec.names import is_object_name, shown

INFO_FOLDER = "/var/run/k8s.cni.cncf.io/devinfo"
"""Where device plugins, CNI plugins and programs in pods expect the files (Device Information 1.1.0)."""
MAX_ID = 128

_ID = re.compile(r"[!-.0-~]+")
_NAME = re.compile(r"[A-Za-z0-9](?:[-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_FILE_NAME_BYTES = 255


class Drawn(NamedTuple):
    """What one attachment draws; both are empty for a network that draws nothing."""

    resource: str = ""
    device: str = ""
    """Empty for a device that the pod's annotation names in place of one that it was given."""


def is_device_id(text: str) -> bool:
    """Whether *text* can be a device's ID, which becomes part of a file's name."""
    return len(text) <= MAX_ID and _ID.fullmatch(text) is not None and not text.startswith("..")


def uses(wants: Sequence[Wanted], networks: Mapping[NetworkRef, Nad], who: str) -> dict[str, int]:
    """Return how many attachments draw from each resource. Raises RequestFailedError (INVALID_CONFIG)."""
    return dict(Counter(resource for want in wants if (resource := _resource(want, networks, who))))


def drawn(
    wants: Sequence[Wanted],
    networks: Mapping[NetworkRef, Nad],
    devices: Mapping[str, tuple[str, ...]],
    who: str,
) -> list[Drawn]:
    """Return what each of *wants* draws from *devices*, which the pod has by resource.

    Where no device is left, the ``deviceID`` of the pod's annotation is good enough, as in Multus. Raises
    RequestFailedError: DEVICE_UNAVAILABLE where there is none of these either, INVALID_CONFIG, INVALID_ANNOTATION.
    """
    number = uses(wants, networks, who)
    left = {resource: iter(devices.get(resource, ())) for resource in number}
    draws: list[Drawn] = []
    for want in wants:
        resource = _resource(want, networks, who)
        draw = Drawn(resource, next(left[resource], "")) if resource else Drawn()
        if resource and not draw.device and not _named(want, who):
            raise _too_few(_label(want, networks), resource, len(devices.get(resource, ())), number[resource], who)
        draws.append(draw)
    return draws


def info_path(folder: str, network: str, container_id: str, ifname: str) -> str:
    """Return the path of the file that says what an attachment's device is, below *folder*.

    Its name is what Multus makes of the same. Of a name that would be too long, the network's part is cut.
    """
    unique = f"-{container_id}_{ifname}".replace("/", "-")
    return f"{folder}/cni/{network.replace('/', '-')[: max(0, _FILE_NAME_BYTES - len(unique))]}{unique}"


def _resource(want: Wanted, networks: Mapping[NetworkRef, Nad], who: str) -> str:
    """Return the resource that *want* draws from, if any."""
    nad = networks.get(want.ref) if want.ref else None
    resource = nad.annotations.get(RESOURCE_NAME, "").strip() if nad else ""
    if not resource or _is_resource(resource):
        return resource
    label = _label(want, networks)
    raise failed(
        ErrorClass.INVALID_CONFIG,
        Phase.RESOLVE,
        f"{who}: network {label} can't be used: its annotation {RESOURCE_NAME} is {shown(resource)}, which is no name "
        f"of a resource, such as vendor.example/nic; correct it",
        network=label,
    )


def _is_resource(text: str) -> bool:
    """Whether *text* is a qualified name (Kubernetes API, "Labels and Selectors", syntax)."""
    *domain, name = text.split("/")
    return len(domain) <= 1 and all(map(is_object_name, domain)) and _NAME.fullmatch(name) is not None


def _named(want: Wanted, who: str) -> bool:
    """Whether the pod's annotation names the device."""
    device = want.selection.device_id if want.selection else ""
    if device and not is_device_id(device):
        raise failed(
            ErrorClass.INVALID_ANNOTATION,
            Phase.RESOLVE,
            f"{who}: network {want.selection}: deviceID {shown(device)} is no device ID; correct it in the annotation",
            network=str(want.selection),
        )
    return bool(device)


def _label(want: Wanted, networks: Mapping[NetworkRef, Nad]) -> str:
    nad = networks.get(want.ref) if want.ref else None
    assert nad is not None
    return f"{nad.namespace}/{nad.name}" if nad.namespace else nad.name


def _too_few(network: str, resource: str, there: int, asked: int, who: str) -> RequestFailedError:
    return failed(
        ErrorClass.DEVICE_UNAVAILABLE,
        Phase.RESOLVE,
        f"{who}: network {network} needs a device of resource {resource}, of which the pod has {there} while its "
        f"networks use {asked}; request {asked} of {resource} in the pod's containers or select fewer such networks",
        network=network,
    )
