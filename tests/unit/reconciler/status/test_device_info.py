"""``device-info`` in the annotation, byte for byte."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from events.cni_result import Dns
from events.fold import State
from events.schema import (
    Event,
    InterfaceAttached,
    Pod,
    Stored,
)
from reconciler.status.device_info import DeviceInfo, read
from reconciler.status.text import Element, pod_status, text
from tests.support.stories.node import Node

PCI = {
    "memif": None,
    "pci": {
        "representor-device": "rep0",
        "pf-pci-address": "0000:18:00.0",
        "rdma-device": "mlx5_3",
        "vhost-net": "/dev/vhost-net",
        "pci-address": "0000:18:02.5",
        "unknown": 1,
    },
    "version": "1.1.0",
    "type": "pci",
}
PCI_TEXT = """    "device-info": {
        "type": "pci",
        "version": "1.1.0",
        "pci": {
            "pci-address": "0000:18:02.5",
            "vhost-net": "/dev/vhost-net",
            "rdma-device": "mlx5_3",
            "pf-pci-address": "0000:18:00.0",
            "representor-device": "rep0"
        }
    }"""
VDPA = {
    "type": "vdpa",
    "version": "1.1.0",
    "vdpa": {
        "parent-device": "vdpa1",
        "driver": "vhost",
        "path": "/dev/vhost-vdpa1",
        "pci-address": "0000:65:00.3",
        "pf-pci-address": "0000:65:00.0",
        "representor-device": "eth5",
    },
}
VDPA_TEXT = """    "device-info": {
        "type": "vdpa",
        "version": "1.1.0",
        "vdpa": {
            "parent-device": "vdpa1",
            "driver": "vhost",
            "path": "/dev/vhost-vdpa1",
            "pci-address": "0000:65:00.3",
            "pf-pci-address": "0000:65:00.0",
            "representor-device": "eth5"
        }
    }"""
VHOST_USER = {"type": "vhost-user", "version": "1.1.0", "vhost-user": {"path": "/run/a&b.sock", "mode": "client"}}
VHOST_USER_TEXT = """    "device-info": {
        "type": "vhost-user",
        "version": "1.1.0",
        "vhost-user": {
            "mode": "client",
            "path": "/run/a\\u0026b.sock"
        }
    }"""
MEMIF = {"type": "memif", "version": "1.1.0", "memif": {"mode": "ethernet", "path": "/run/memif.sock", "role": "slave"}}
MEMIF_TEXT = """    "device-info": {
        "type": "memif",
        "version": "1.1.0",
        "memif": {
            "role": "slave",
            "path": "/run/memif.sock",
            "mode": "ethernet"
        }
    }"""
EMPTY = {"type": "pci", "version": "", "pci": {}}
EMPTY_TEXT = """    "device-info": {
        "type": "pci",
        "pci": {}
    }"""


def status_of(info: str, interfaces: int = 1) -> str:
    """Return the status of a pod whose second attachment has a device and that many interfaces."""
    state = State()
    for sequence, event in enumerate(Node().attach("a" * 64, Pod("d", "p", "u")), 1):
        state.apply(Stored(sequence, with_device(event, info, interfaces)))
    status = pod_status(list(state.sandboxes.values()))
    assert status is not None
    return status.text


def with_device(event: Event, info: str, interfaces: int) -> Event:
    if not isinstance(event.data, InterfaceAttached) or event.data.ifname != "net1":
        return event
    result = json.loads(event.data.result)
    (inside,) = (each for each in result["interfaces"] if each.get("sandbox"))
    result["interfaces"] = [{**inside, "name": f"net{number}"} for number in range(1, interfaces + 1)]
    result["ips"] = [{"address": "10.1.0.5/24", "interface": 0}]
    return replace(event, data=replace(event.data, result=json.dumps(result), device_info=info))


@pytest.mark.parametrize(
    ("info", "shown"),
    [
        (PCI, PCI_TEXT),
        (VDPA, VDPA_TEXT),
        (VHOST_USER, VHOST_USER_TEXT),
        (MEMIF, MEMIF_TEXT),
        (EMPTY, EMPTY_TEXT),
    ],
    ids=["pci", "vdpa", "vhost-user", "memif", "empty"],
)
def test_the_device_comes_after_dns_as_go_prints_it(info: dict[str, object], shown: str) -> None:
    default, element = status_of(json.dumps(info)).split("},{")
    assert "device-info" not in default
    assert element.endswith(f'    "dns": {{}},\n{shown}\n}}]')


def test_the_device_comes_before_the_gateways() -> None:
    element = Element(name="n", dns=Dns(), device_info=DeviceInfo(type="pci"), gateway=("10.0.0.1",))
    assert list(json.loads(text([element]))[0]) == ["name", "dns", "device-info", "gateway"]


def test_each_of_several_interfaces_has_the_device() -> None:
    shown = json.loads(status_of(json.dumps(MEMIF), interfaces=2))
    assert [(element["interface"], "device-info" in element) for element in shown] == [
        ("eth0", False),
        ("net1", True),
        ("net2", True),
    ]


@pytest.mark.parametrize("info", ["", "[]", "{", '{"type": 1}', '{"type": "pci", "pci": "x"}', "[" * 5000])
def test_an_unreadable_device_is_omitted(info: str) -> None:
    assert read(info) is None
    assert [element["name"] for element in json.loads(status_of(info))][1] == "default/storage"
    assert "device-info" not in status_of(info)
