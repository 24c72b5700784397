"""Decide what becomes of a network for which the pod has no device: its ADD fails, or it is attached without.

Pure. A resource need not stand for devices: the scheduler also counts resources that no device plugin serves, such as
those with which KubeVirt's bridge-marker says that a node has a bridge.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any

from nodeworker.plugins.spec.conflist import declared_capabilities

_DEVICE_TYPES = frozenset({"sriov", "ib-sriov", "accelerated-bridge", "host-device"})
"""Plugins that only take over a device."""
_DEVICE_KEYS = frozenset({"deviceID", "pciBusID", "device", "hwaddr", "kernelpath", "master"})
"""Keys with which the configuration of such a plugin names the device itself."""
_CAPABILITIES = frozenset({"deviceID", "CNIDeviceInfoFile"})


class DeviceUse(enum.Enum):
    """What the plugins of a network do with a device."""

    NEEDED = "needed"
    """One of them can't work without a device, and its configuration names none."""
    OPTIONAL = "optional"
    """One of them declares a capability for devices."""
    NONE = "none"


class Shortage(enum.Enum):
    """What to do with a network for which no device is left."""

    REFUSE = "refuse"
    WARN = "warn"
    """Attach it without a device, and warn."""
    IGNORE = "ignore"
    """Attach it without a device."""


def device_use(plugins: Iterable[Mapping[str, Any]]) -> DeviceUse:
    """Return what *plugins*, the configurations of one network, do with a device."""
    chain = list(plugins)
    if any(plugin.get("type") in _DEVICE_TYPES and not any(map(plugin.get, _DEVICE_KEYS)) for plugin in chain):
        return DeviceUse.NEEDED
    if any(declared_capabilities(plugin) & _CAPABILITIES for plugin in chain):
        return DeviceUse.OPTIONAL
    return DeviceUse.NONE


def shortage(devices: int, use: DeviceUse) -> Shortage:
    """Return what to do if *devices*, all that the pod has of a resource, are in use, and a network would *use* one.

    A pod with some devices requested too few. A pod with none may have asked for a resource without devices.
    """
    if devices or use is DeviceUse.NEEDED:
        return Shortage.REFUSE
    return Shortage.WARN if use is DeviceUse.OPTIONAL else Shortage.IGNORE
