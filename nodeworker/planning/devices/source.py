"""What planning needs of whoever gave a pod its devices, and how they are asked, one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

from events.schema import ErrorClass, Phase, Pod
from nodeworker.errors import failed
from nodeworker.planning.resolve import device_assignment
from nodeworker.planning.resolve.netconf import NetConf
from nodeworker.planning.resolve.networks import wanted
from nodeworker.planning.resolve.objects import Nad, NetworkRef, PodObject
from nodeworker.plugins.spec.names import shown

Devices: TypeAlias = Mapping[str, tuple[str, ...]]
"""IDs of a pod's devices, in the order in which its attachments take them, by resource."""


class DevicesUnknownError(Exception):
    """Nobody can say now which devices the pod has; the text says why, and what to do unless that is to wait."""


class DeviceSource(Protocol):
    """One who knows which devices pods have."""

    async def devices(self, pod: Pod) -> Devices:
        """Return the devices that *pod* was given; nothing for a pod that has none.

        The UID of *pod* is the kubelet's. Raises DevicesUnknownError.
        """
        ...


async def find(
    conf: NetConf,
    asked: Pod,
    pod: PodObject | None,
    networks: Mapping[NetworkRef, Nad],
    sources: Sequence[DeviceSource],
) -> Devices:
    """Return the devices of *pod* that its networks draw from; *asked* is how the runtime named it.

    Nobody is asked for a pod whose networks draw no devices, and a source only once those before it know of too few: a
    pod with the devices of a device plugin costs no request to the API server. Raises RequestFailedError:
    DEVICE_UNAVAILABLE (CNI code 11: the runtime tries again), INVALID_CONFIG, and what ``wanted`` raises.
    """
    who = f"pod {asked}" if asked.name else "a sandbox without pod"
    uses = device_assignment.uses(wanted(conf, pod), networks, who)
    found: dict[str, tuple[str, ...]] = {}
    if pod is None:
        return found
    given = Pod(pod.namespace, pod.name, asked.uid or pod.uid)
    for source in sources:
        if all(len(found.get(resource, ())) >= number for resource, number in uses.items()):
            break
        try:
            _add(found, await source.devices(given), uses)
        except DevicesUnknownError as error:
            raise failed(
                ErrorClass.DEVICE_UNAVAILABLE,
                Phase.RESOLVE,
                f"{who}: its networks draw devices of {', '.join(uses)}, and nobody can say now which the pod has: "
                f"{error}; the runtime will try again",
            ) from error
    return found


def _add(found: dict[str, tuple[str, ...]], given: Devices, uses: Mapping[str, int]) -> None:
    """Add to *found* what of *given* is used. Raises DevicesUnknownError for what can't be the ID of a device."""
    for resource in uses:
        for device in given.get(resource, ()):
            if not device_assignment.is_device_id(device):
                raise DevicesUnknownError(
                    f"{shown(device)} of resource {resource} is no usable device ID: its device plugin or driver has "
                    f"to name it with at most {device_assignment.MAX_ID} visible ASCII characters, none of them a slash"
                )
        # A device that an init container had may be given to a later one again.
        found[resource] = tuple(dict.fromkeys((*found.get(resource, ()), *given.get(resource, ()))))
