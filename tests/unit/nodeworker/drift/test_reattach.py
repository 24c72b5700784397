"""What runs again to attach an interface as it was: the recorded plugins, with the recorded addresses."""

from __future__ import annotations

import json

from events.schema import IfName, NetworkName, PlannedAttachment
from nodeworker.drift.repair.reattach import plan_as_recorded

RESULT = json.dumps(
    {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "mac": "02:00:5e:10:00:01", "sandbox": "/run/netns/p"}],
        "ips": [{"address": "10.1.0.5/24", "interface": 0}],
    }
)


def planned(*plugins: str) -> PlannedAttachment:
    return PlannedAttachment(
        network=NetworkName("d/n"),
        ifname=IfName("net1"),
        cni_name="n",
        cni_version="1.0.0",
        plugins=plugins,
        cni_args="IP=10.1.0.9;K8S_POD_NAME=p",
    )


def test_addresses_are_those_recorded_and_the_rest_keeps_its_bytes() -> None:
    first = (
        '{"type":"macvlan","mtu":1.4e3,"ipam":{"type":"host-local"},"runtimeConfig":{"ips":["10.1.0.9"],"x":1.0},'
        '"args":{"cni":{"ips":["10.1.0.9"],"y":-0},"z":1e3},"capabilities":null}'
    )
    other = '{"type":"tuning", "sysctl":{"a":1.0}}'
    again = plan_as_recorded(planned(first, other), RESULT)
    assert again.plugins == (
        '{"type":"macvlan","mtu":1.4e3,"ipam":{"type":"static","addresses":[{"address":"10.1.0.5/24"}]},'
        '"runtimeConfig":{"x":1.0,"mac":"02:00:5e:10:00:01"},"args":{"cni":{"y":-0},"z":1e3},'
        '"capabilities":{"mac":true}}',
        other,
    )
    assert again.cni_args == "K8S_POD_NAME=p"


def test_a_plugin_without_ipam_that_takes_no_address_is_run_as_recorded() -> None:
    first = '{"type":"ipvlan","mtu":1.4e3,"ipam":{}}'
    assert plan_as_recorded(planned(first), RESULT).plugins == (first,)
