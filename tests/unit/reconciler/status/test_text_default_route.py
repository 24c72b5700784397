"""``gateway`` after an attachment claims the pod's default routes, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest

from events.fold import Attachment, AttachmentPhase, Sandbox, SandboxKey, SandboxPhase
from events.schema import ContainerId, IfName, NetworkName, NodeName, PlannedAttachment, Pod
from reconciler.status.text import StatusError, pod_status

ETH0 = {"dst": "0.0.0.0/0", "gw": "10.244.0.1"}, {"dst": "::/0", "gw": "fd00::1"}
NET1 = {"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "fd01::1"}

ELEMENTS = """[{{
    "name": "pods",
    "interface": "eth0",
    "ips": [
        "10.0.0.5"
    ],
    "default": true,
    "dns": {{}}{}
}},{{
    "name": "default/net",
    "interface": "net1",
    "ips": [
        "10.1.0.5"
    ],
    "dns": {{}}{}
}}]"""


def attachment(index: int, routes: Any, claim: tuple[str, ...] | None, version: str = "1.0.0") -> Attachment:
    ifname = f"net{index}" if index else "eth0"
    result = {
        "cniVersion": version,
        "interfaces": [{"name": ifname, "sandbox": "/n"}],
        "ips": [{"address": f"10.{index}.0.5/24", "interface": 0}],
        "routes": routes,
    }
    plan = PlannedAttachment(
        network=NetworkName("default/net" if index else "pods"),
        ifname=IfName(ifname),
        cni_name="n",
        cni_version=version,
        plugins=("{}",),
        default=not index,
        default_route=claim,
    )
    return Attachment(plan=plan, phase=AttachmentPhase.ATTACHED, result=json.dumps(result))


def status_of(*attachments: Attachment) -> str:
    sandbox = Sandbox(
        key=SandboxKey(ContainerId("a" * 64), IfName("eth0")),
        node=NodeName("node-1"),
        phase=SandboxPhase.ATTACHED,
        pod=Pod("default", "p", "u"),
        attachments=attachments,
    )
    status = pod_status([sandbox])
    assert status is not None
    return status.text


def expected(eth0: list[str], net1: list[str]) -> str:
    def gateway(addresses: list[str]) -> str:
        lines = ",\n".join(f'        "{address}"' for address in addresses)
        return f',\n    "gateway": [\n{lines}\n    ]' if addresses else ""

    return ELEMENTS.format(gateway(eth0), gateway(net1))


def test_without_a_claim_the_plugins_routes_are_repeated() -> None:
    assert status_of(attachment(0, ETH0, None), attachment(1, NET1, None)) == expected(
        ["10.244.0.1", "fd00::1"], ["10.1.0.1", "fd01::1"]
    )


@pytest.mark.parametrize(
    ("claim", "routes", "eth0", "net1"),
    [
        (("10.1.0.254",), (), ["fd00::1"], ["10.1.0.254"]),
        (("fd01::fe",), (), ["10.244.0.1"], ["fd01::fe"]),
        (("10.1.0.254", "fd01::fe"), (), [], ["10.1.0.254", "fd01::fe"]),
        (("10.1.0.254",), NET1, ["fd00::1"], ["fd01::1", "10.1.0.254"]),
        (("10.1.0.1",), NET1[:1], ["fd00::1"], ["10.1.0.1"]),
        ((), NET1, [], ["10.1.0.1", "fd01::1"]),
        ((), NET1[1:], ["10.244.0.1"], ["fd01::1"]),
        ((), ({"dst": "0.0.0.0/0"},), ["fd00::1"], ["\\u003cnil\\u003e"]),
    ],
)
def test_a_claim_sets_the_gateway_of_each_family(
    claim: tuple[str, ...], routes: Any, eth0: list[str], net1: list[str]
) -> None:
    assert status_of(attachment(0, ETH0, None), attachment(1, routes, claim)) == expected(eth0, net1)


def test_the_default_network_keeps_default_but_loses_routes() -> None:
    text = status_of(attachment(0, ETH0, None), attachment(1, (), ("10.1.0.254", "fd01::fe")))
    assert [element.get("default") for element in json.loads(text)] == [True, None]


def test_a_claim_of_the_default_network_removes_other_routes() -> None:
    text = status_of(attachment(0, ETH0, ()), attachment(1, NET1, None))
    assert text == expected(["10.244.0.1", "fd00::1"], [])


def test_an_unreadable_result_is_refused_with_pod_and_network() -> None:
    with pytest.raises(StatusError, match=r"pod default/p: the result of network default/net \(net1\) is unusable"):
        status_of(attachment(0, ETH0, None), attachment(1, [{"dst": "here"}], ()))
