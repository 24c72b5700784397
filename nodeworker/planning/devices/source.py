"""The interface to sources of a pod's devices, and the search through them in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

from events.schema import ErrorClass, Phase, Pod
from nodeworker.errors import failed
from nodeworker.planning.resolve import device_assignment
from nodeworker.planning.resolve.netconf import RuntimeNetConf
from nodeworker.planning.resolve.networks import networks_of
from nodeworker.planning.resolve.objects import Nad, NetworkRef, PodObject
from nodeworker.plugins.spec.names import shown

Devices: TypeAlias = Mapping[str, tuple[str, ...]]
"""IDs of a pod's devices by resource, in the order in which they are assigned."""


class DevicesUnknownError(Exception):
    """The pod's devices are not known now; the text says why, and what to do unless a retry will help."""


class DeviceSource(Protocol):
    """A source of pods' devices."""

    async def devices(self, pod: Pod) -> Devices:
        """Return the allocated devices of *pod*; empty for a pod that has none.

        The UID of *pod* is the kubelet's. Raises DevicesUnknownError.
        """
        ...


async def find_devices(
    conf: RuntimeNetConf,
    asked: Pod,
    pod: PodObject | None,
    networks: Mapping[NetworkRef, Nad],
    sources: Sequence[DeviceSource],
) -> Devices:
    """Return the devices of *pod* that its networks use; *asked* is the pod as the runtime names it.

    No source is asked for a pod whose networks use no devices. A source is asked only if those before it have too few:
    a pod with the devices of a device plugin causes no request to the API server. Raises RequestFailedError:
    DEVICE_UNAVAILABLE (CNI code 11: the runtime tries again), INVALID_CONFIG, and the errors of ``networks_of``.
    """
    uses = device_assignment.resource_counts(networks_of(conf, pod), networks)
    found: dict[str, tuple[str, ...]] = {}
    if pod is None:
        return found
    identified = Pod(pod.namespace, pod.name, asked.uid or pod.uid)
    for source in sources:
        if all(len(found.get(resource, ())) >= number for resource, number in uses.items()):
            break
        try:
            _add(found, await source.devices(identified), uses)
        except DevicesUnknownError as error:
            raise failed(
                ErrorClass.DEVICE_UNAVAILABLE,
                Phase.RESOLVE,
                f"its networks use devices of {', '.join(uses)}, "
                f"but the pod's devices are unknown: {error}; the runtime will retry",
            ) from error
    return found


def _add(found: dict[str, tuple[str, ...]], devices: Devices, uses: Mapping[str, int]) -> None:
    """Add the *devices* of used resources to *found*. Raises DevicesUnknownError for an invalid device ID."""
    for resource in uses:
        for device in devices.get(resource, ()):
            if not device_assignment.is_device_id(device):
                raise DevicesUnknownError(
                    f"{shown(device)} of resource {resource} is not a usable device ID: its device plugin or driver "
                    f"must use at most {device_assignment.MAX_ID} visible ASCII characters, none of them a slash"
                )
        # A later container may get a device that an init container had.
        found[resource] = tuple(dict.fromkeys((*found.get(resource, ()), *devices.get(resource, ()))))
