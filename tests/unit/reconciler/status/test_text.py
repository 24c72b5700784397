"""The annotation's text, byte for byte. The samples follow the rules of the programs that read it."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from events.cni_result import ResultError, canonical, read
from events.fold import Sandbox, State
from events.schema import (
    Event,
    InterfaceAttached,
    Pod,
    Stored,
)
from reconciler.status.text import StatusError, elements, pod_status, text
from tests.support.stories.node import Node
from tests.support.stories.values import NETWORKS


def status_text(
    result: dict[str, object], network: str = "default/net", version: str = "1.1.0", *, default: bool = False
) -> str:
    return text(elements(read(json.dumps(result), version), network, default=default))


BRIDGE = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "cni0", "mac": "02:00:00:00:00:01"},
        {"name": "veth1", "mac": "02:00:00:00:00:02"},
        {"name": "eth0", "mac": "02:00:00:00:00:03", "mtu": 1450, "sandbox": "/run/netns/a"},
    ],
    "ips": [
        {"address": "10.244.0.5/24", "gateway": "10.244.0.1", "interface": 2},
        {"address": "FD00:0:0::5/64", "gateway": "fd00::1", "interface": 2},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.0.1"}, {"dst": "::/0", "gw": "FD00::1"}, {"dst": "10.0.0.0/8"}],
    "dns": {"nameservers": ["10.96.0.10"], "domain": "example", "search": ["a", "b"], "options": ["ndots:5"]},
}

BRIDGE_TEXT = """[{
    "name": "default/net",
    "interface": "eth0",
    "ips": [
        "10.244.0.5",
        "fd00::5"
    ],
    "mac": "02:00:00:00:00:03",
    "mtu": 1450,
    "default": true,
    "dns": {
        "nameservers": [
            "10.96.0.10"
        ],
        "domain": "example",
        "search": [
            "a",
            "b"
        ],
        "options": [
            "ndots:5"
        ]
    },
    "gateway": [
        "10.244.0.1",
        "fd00::1"
    ]
}]"""


def test_a_bridge_attachment_is_rendered_in_full() -> None:
    assert status_text(BRIDGE, default=True) == BRIDGE_TEXT


def test_an_attachment_other_than_the_default_has_no_default_key() -> None:
    assert status_text(BRIDGE) == BRIDGE_TEXT.replace('    "default": true,\n', "")


def test_one_interface_has_all_addresses_and_no_empty_keys_but_dns() -> None:
    result = {
        "cniVersion": "0.3.1",
        "interfaces": [{"name": "net1", "mac": "02:00:00:00:00:04", "mtu": 9000, "sandbox": "/run/netns/a"}],
        "ips": [
            {"version": "4", "address": "192.168.1.7/24", "interface": 5},
            {"version": "6", "address": "::ffff:1.2.3.4/96"},
        ],
    }
    assert status_text(result) == (
        '[{\n    "name": "default/net",\n    "interface": "net1",\n    "ips": [\n        "192.168.1.7",\n'
        '        "1.2.3.4"\n    ],\n    "mac": "02:00:00:00:00:04",\n    "dns": {}\n}]'
    )


def test_an_interface_on_the_node_gives_an_element_without_interface() -> None:
    result = {"cniVersion": "1.0.0", "interfaces": [{"name": "vf0", "mac": "02:00:00:00:00:05"}], "dns": None}
    assert status_text(result) == '[{\n    "name": "default/net",\n    "dns": {}\n}]'


def test_the_interface_with_the_gateway_is_the_default() -> None:
    result = {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "a0", "sandbox": "/n"},
            {"name": "host"},
            {"name": "b0", "sandbox": "/n"},
            {"name": "c0", "sandbox": "/n"},
        ],
        "ips": [
            {"address": "10.0.0.1/24", "interface": 0},
            {"address": "10.0.1.1/24", "interface": 2, "gateway": "10.0.1.254"},
            {"address": "10.0.9.9/24", "interface": 1, "gateway": "10.0.9.254"},
            {"address": "10.0.2.1/24"},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.1.254"}],
    }
    shown = json.loads(status_text(result, default=True))
    assert [(e["interface"], e.get("ips"), e.get("default"), e["gateway"]) for e in shown] == [
        ("a0", ["10.0.0.1"], None, ["10.0.1.254"]),
        ("b0", ["10.0.1.1"], True, ["10.0.1.254"]),
        ("c0", ["10.0.2.1"], None, ["10.0.1.254"]),
    ]
    assert list(shown[1]) == ["name", "interface", "ips", "default", "dns", "gateway"]


def test_without_gateway_the_first_interface_in_the_pod_is_the_default() -> None:
    result = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "h"}, {"name": "a", "sandbox": "/n"}, {"name": "b", "sandbox": "/n"}],
    }
    assert [e.get("default") for e in json.loads(status_text(result, default=True))] == [True, None]


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_results_of_the_first_cni_versions_give_no_elements(version: str) -> None:
    result = {"cniVersion": version, "ip4": {"ip": "10.0.0.5/24", "gateway": "10.0.0.1"}}
    assert status_text(result) == "[]"


def test_a_result_without_interfaces_gives_no_elements() -> None:
    assert status_text({"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.5/24"}]}) == "[]"


def test_a_default_route_without_gateway_is_printed_as_go_prints_it() -> None:
    result = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "sandbox": "/n"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    assert '"gateway": [\n        "\\u003cnil\\u003e"\n    ]' in status_text(result)


def test_only_characters_that_go_escapes_are_escaped() -> None:
    shown = status_text(
        {"cniVersion": "1.0.0", "interfaces": [{"name": "a", "sandbox": "/n"}]}, network='x/<&>\u2028é"\\\t'
    )
    assert '"name": "x/\\u003c\\u0026\\u003e\\u2028é\\"\\\\\\t"' in shown


def test_the_mtu_appears_if_the_results_version_has_it() -> None:
    interfaces = [{"name": "a", "sandbox": "/n", "mtu": 1500}]
    assert '"mtu": 1500' in status_text({"interfaces": interfaces}, version="1.1.0")
    assert "mtu" not in status_text({"cniVersion": "1.0.0", "interfaces": interfaces}, version="1.1.0")


def test_elements_are_joined_by_a_bare_comma() -> None:
    sandboxes = folded(Node().attach("a" * 64, Pod("d", "p", "u")))
    status = pod_status(sandboxes)
    assert status is not None
    assert status.text.count("},{") == 1
    shown = json.loads(status.text)
    assert [(e["name"], e["interface"], e.get("default")) for e in shown] == [
        (NETWORKS[0], "eth0", True),
        (NETWORKS[1], "net1", None),
    ]


def folded(*sequences: Iterable[Event]) -> list[Sandbox]:
    state = State()
    for sequence, event in enumerate((event for events in sequences for event in events), 1):
        state.apply(Stored(sequence, event))
    return list(state.sandboxes.values())


def test_a_pod_has_no_status_before_attach_and_after_failure() -> None:
    node, pod = Node(), Pod("d", "p", "u")
    for events in (list(node.attach("a" * 64, pod))[:-1], list(node.attach("b" * 64, pod, fails_at=1))):
        assert pod_status(folded(events)) is None


def test_a_recreated_pod_has_the_status_of_its_new_sandbox() -> None:
    node = Node()
    old, new = Pod("d", "p", "old"), Pod("d", "p", "new")
    sandboxes = folded(node.attach("a" * 64, old), node.attach("b" * 64, new))
    status = pod_status(sandboxes)
    assert status is not None
    assert status.pod.uid == "new"
    status = pod_status(folded(node.attach("c" * 64, old), list(node.attach("d" * 64, new))[:-1]))
    assert status is not None
    assert status.pod.uid == "old"


def test_the_status_remains_during_a_detach() -> None:
    node, pod = Node(), Pod("d", "p", "u")
    attached = list(node.attach("a" * 64, pod))
    before = pod_status(folded(attached))
    for count in (1, 2, 3):
        assert pod_status(folded(attached, list(node.detach("a" * 64, pod))[:count])) == before
    assert pod_status(folded(attached, node.detach("a" * 64, pod))) is None


@pytest.mark.parametrize(
    "broken", ["", "[]", "{", '{"ips": [{}]}', '{"cniVersion": "one"}', '{"interfaces": 3}', "[" * 5000]
)
def test_an_invalid_result_is_refused(broken: str) -> None:
    with pytest.raises(ResultError):
        read(broken, "1.0.0")


def test_an_invalid_address_is_refused_with_pod_and_network() -> None:
    node = Node()
    events = [
        broken_result(event) if isinstance(event.data, InterfaceAttached) and event.data.ifname == "net1" else event
        for event in node.attach("a" * 64, Pod("d", "p", "u"))
    ]
    with pytest.raises(StatusError, match=r"pod d/p: .* network default/storage \(net1\) .*'10\.1\.0\.x/24'"):
        pod_status(folded(events))


def broken_result(event: Event) -> Event:
    assert isinstance(event.data, InterfaceAttached)
    body = json.loads(event.data.result)
    body["ips"][0]["address"] = "10.1.0.x/24"
    return replace(event, data=replace(event.data, result=json.dumps(body)))


@pytest.mark.parametrize(
    ("given", "printed"),
    [("2001:DB8::0001/64", "2001:db8::1"), ("::ffff:10.0.0.1", "10.0.0.1"), ("10.0.0.1/8", "10.0.0.1"), ("::", "::")],
)
def test_addresses_are_printed_as_go_prints_them(given: str, printed: str) -> None:
    assert canonical(given) == printed
