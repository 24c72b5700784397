"""The status of results that plugins of default networks print: of Calico, AWS, Azure, Cilium and CNI-Genie."""

from __future__ import annotations

import json
from typing import Any

import pytest

from events.cni_result import read
from reconciler.status.text import elements

POD = "/run/netns/a"
CALICO: dict[str, Any] = {
    "interfaces": [{"name": "cali05f4a1849c5"}],
    "ips": [{"version": "4", "address": "10.244.196.152/32"}, {"version": "6", "address": "fd10:244::c497/128"}],
}
AWS: dict[str, Any] = {
    "interfaces": [
        {"name": "enid46ea3cc9ea"},
        {"name": "eth0", "sandbox": POD},
        {"name": "dummyd46ea3cc9ea", "mac": "0", "sandbox": "0"},
    ],
    "ips": [{"version": "4", "interface": 1, "address": "192.168.14.14/32"}],
}
AWS_BEFORE_1_9: dict[str, Any] = {"ips": [{"version": "4", "address": "192.168.14.14/32"}]}
AZURE: dict[str, Any] = {
    "interfaces": [{"name": "eth0"}],
    "ips": [{"version": "4", "interface": 0, "address": "10.240.0.23/16", "gateway": "10.240.0.1"}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.240.0.1"}],
}
CILIUM: dict[str, Any] = {
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": POD}],
    "ips": [
        {"version": "6", "interface": 0, "address": "fd00::77/128", "gateway": "fd00::10"},
        {"version": "4", "interface": 0, "address": "10.0.1.77/32", "gateway": "10.0.1.10"},
    ],
    "routes": [{"dst": "fd00::10/128"}, {"dst": "::/0", "gw": "fd00::10"}, {"dst": "0.0.0.0/0", "gw": "10.0.1.10"}],
}
GENIE: dict[str, Any] = {
    "interfaces": [{"name": "cni0"}, {"name": "vethf764f324"}, {"name": "eth1", "sandbox": POD}],
    "ips": [
        {"version": "4", "interface": -1, "address": "192.168.135.145/32"},
        {"version": "4", "interface": 2, "address": "10.244.1.147/24", "gateway": "10.244.1.1"},
    ],
}


@pytest.mark.parametrize(
    ("result", "listed"),
    [
        (CALICO, [("", ("10.244.196.152", "fd10:244::c497"), (), True)]),
        (AWS, [("eth0", ("192.168.14.14",), (), True), ("dummyd46ea3cc9ea", (), (), False)]),
        (AWS_BEFORE_1_9, []),
        (AZURE, [("", ("10.240.0.23",), ("10.240.0.1",), True)]),
        (CILIUM, [("eth0", ("fd00::77", "10.0.1.77"), ("fd00::10", "10.0.1.10"), True)]),
        (GENIE, [("eth1", ("10.244.1.147",), (), True)]),
    ],
    ids=["calico", "aws", "aws before 1.9", "azure", "cilium", "genie"],
)
def test_default_network_is_listed_as_by_multus(result: dict[str, Any], listed: list[tuple[Any, ...]]) -> None:
    found = elements(read(json.dumps(result), "0.3.1"), "default", default=True)
    assert [(each.interface, each.ips, each.gateway, each.default) for each in found] == listed
