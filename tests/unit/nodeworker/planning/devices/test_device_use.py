"""What becomes of a network for which the pod has no device."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeworker.errors import RequestFailedError
from nodeworker.planning.resolve.annotation import Selection
from nodeworker.planning.resolve.device_assignment import AssignedDevice, assign
from nodeworker.planning.resolve.device_use import DeviceUse, Shortage, device_use, shortage
from nodeworker.planning.resolve.networks import NetworkEntry
from nodeworker.planning.resolve.objects import RESOURCE_NAME, Nad, NetworkRef


@pytest.mark.parametrize(
    ("use", "devices", "expected"),
    [
        (DeviceUse.NEEDED, 0, Shortage.REFUSE),
        (DeviceUse.NEEDED, 1, Shortage.REFUSE),
        (DeviceUse.OPTIONAL, 0, Shortage.WARN),
        (DeviceUse.OPTIONAL, 1, Shortage.REFUSE),
        (DeviceUse.NONE, 0, Shortage.IGNORE),
        (DeviceUse.NONE, 1, Shortage.REFUSE),
    ],
)
def test_shortage_depends_on_use_and_on_devices_of_the_pod(use: DeviceUse, devices: int, expected: Shortage) -> None:
    assert shortage(devices, use) is expected


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ([{"type": "sriov"}], DeviceUse.NEEDED),
        ([{"type": "ib-sriov"}], DeviceUse.NEEDED),
        ([{"type": "accelerated-bridge"}], DeviceUse.NEEDED),
        ([{"type": "host-device"}], DeviceUse.NEEDED),
        ([{"type": "host-device", "device": ""}], DeviceUse.NEEDED),
        ([{"type": "tuning"}, {"type": "sriov"}], DeviceUse.NEEDED),
        ([{"type": "sriov", "capabilities": {"deviceID": True}}], DeviceUse.NEEDED),
        ([{"type": "sriov", "deviceID": "0000:03:02.1"}], DeviceUse.NONE),
        ([{"type": "sriov", "master": "eth1"}], DeviceUse.NONE),
        ([{"type": "host-device", "device": "eth1"}], DeviceUse.NONE),
        ([{"type": "host-device", "hwaddr": "02:00:00:00:00:01"}], DeviceUse.NONE),
        ([{"type": "host-device", "kernelpath": "/sys/x"}], DeviceUse.NONE),
        ([{"type": "host-device", "pciBusID": "0000:03:02.1"}], DeviceUse.NONE),
        ([{"type": "userspace", "capabilities": {"deviceID": True}}], DeviceUse.OPTIONAL),
        ([{"type": "bridge"}, {"type": "x", "capabilities": {"CNIDeviceInfoFile": True}}], DeviceUse.OPTIONAL),
        ([{"type": "x", "capabilities": {"deviceID": False, "mac": True}}], DeviceUse.NONE),
        ([{"type": "x", "capabilities": None}], DeviceUse.NONE),
        ([{"type": "bridge", "bridge": "br1"}, {"type": "tuning"}], DeviceUse.NONE),
        ([{"type": "cnv-bridge", "bridge": "br1"}], DeviceUse.NONE),
        ([{"type": "ovs", "bridge": "br1"}], DeviceUse.NONE),
        ([], DeviceUse.NONE),
    ],
)
def test_use_of_a_device_is_read_from_types_keys_and_capabilities(chain: Any, expected: DeviceUse) -> None:
    assert device_use(chain) is expected


RESOURCES = ("vendor.example/a", "vendor.example/b")
NADS = {
    NetworkRef("shop", name): Nad("shop", name, json.dumps({}), {RESOURCE_NAME: resource} if resource else {})
    for name, resource in zip("abn", (*RESOURCES, ""), strict=True)
}
ENTRIES = st.lists(st.tuples(st.sampled_from("abn"), st.sampled_from(DeviceUse), st.booleans()), max_size=8)
DEVICES = st.fixed_dictionaries({}, optional={resource: st.integers(0, 4) for resource in RESOURCES})


def assigned(entries: list[tuple[str, DeviceUse, bool]], counts: dict[str, int]) -> list[AssignedDevice] | None:
    """Return the devices of *entries* (network, use, whether the annotation names a device); None: refused."""
    networks = [
        NetworkEntry(
            ref=NetworkRef("shop", name),
            selection=Selection(namespace="shop", name=name, device_id="mine" if is_named else ""),
        )
        for name, _, is_named in entries
    ]
    devices = {resource: tuple(f"{resource[-1]}{n}" for n in range(count)) for resource, count in counts.items()}
    try:
        return assign(networks, NADS, devices, [use for _, use, _ in entries])
    except RequestFailedError:
        return None


@given(ENTRIES, DEVICES)
def test_no_device_is_used_twice_and_none_is_made_up(
    entries: list[tuple[str, DeviceUse, bool]], counts: dict[str, int]
) -> None:
    for resource in RESOURCES:
        found = [each.device for each in assigned(entries, counts) or () if each.resource == resource and each.device]
        assert found == [f"{resource[-1]}{n}" for n in range(len(found))]
        assert len(found) <= counts.get(resource, 0)


@given(ENTRIES, DEVICES)
def test_refused_only_where_too_few_are_listed_or_one_is_needed(
    entries: list[tuple[str, DeviceUse, bool]], counts: dict[str, int]
) -> None:
    refused = False
    for name, resource in zip("ab", RESOURCES, strict=True):
        count = counts.get(resource, 0)
        short = [(use, is_named) for network, use, is_named in entries if network == name][count:]
        refused |= any(not is_named and (count > 0 or use is DeviceUse.NEEDED) for use, is_named in short)
    assert (assigned(entries, counts) is None) == refused


@given(ENTRIES, st.integers(1, 4))
def test_other_resources_of_the_pod_change_nothing(entries: list[tuple[str, DeviceUse, bool]], count: int) -> None:
    alone = [entry for entry in entries if entry[0] != "b"]
    assert assigned(alone, {RESOURCES[0]: count}) == assigned(alone, {RESOURCES[0]: count, RESOURCES[1]: 2})
