"""The annotations' grammar: a valid selection is accepted; an error names element and field."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.schema import ErrorClass, Failure, Phase
from nodeworker.errors import RequestFailedError, error_json
from nodeworker.planning.resolve.annotation import (
    Bandwidth,
    PortMapping,
    Selection,
    parse_default_network,
    parse_networks,
)
from nodeworker.plugins.spec.names import ifname_problem

labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
ifnames = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_.\-]{0,14}", fullmatch=True)


def refused(text: str) -> str:
    with pytest.raises(RequestFailedError) as caught:
        parse_networks(text, "test")
    failure = caught.value.failure
    assert (failure.error_class, failure.phase, failure.code) == (ErrorClass.INVALID_ANNOTATION, Phase.RESOLVE, 7)
    return failure.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("net1", [Selection("test", "net1")]),
        ("default/net1", [Selection("default", "net1")]),
        ("net1@my_interface", [Selection("test", "net1", "my_interface")]),
        ("default/net1@my_interface", [Selection("default", "net1", "my_interface")]),
        ("net1@exactly15bytes_", [Selection("test", "net1", "exactly15bytes_")]),
        ("net1,net2", [Selection("test", "net1"), Selection("test", "net2")]),
        (" net1 ,\n other/net2 @ eth5 ", [Selection("test", "net1"), Selection("other", "net2", "eth5")]),
        ("net1,net1", [Selection("test", "net1"), Selection("test", "net1")]),
        ("/net1@", [Selection("test", "net1")]),
        ("", []),
        (" \n\t", []),
        ("[]", []),
    ],
)
def test_short_form_selects(text: str, expected: list[Selection]) -> None:
    assert list(parse_networks(text, "test")) == expected


@pytest.mark.parametrize(
    ("text", "element", "why"),
    [
        ("root@someIP/root@someOtherIP/root@thirdIP", "element 1", "form"),
        ("root@someIP/root@someOtherIP@garbagevalue", "element 1", "form"),
        ("root@someIP/root@someOtherIP", "element 1", "field namespace"),
        ("default/net1@myIfc Name", 'element 1 ("net1")', "field interface"),
        ("default/net1@very_long_interface_name", 'element 1 ("net1")', "longer than 15 bytes"),
        ("net1,net2,", "element 3", "field name is missing"),
        ("net1,,net2", "element 2", "field name is missing"),
        (",", "element 1", "field name is missing"),
        ("default/", "element 1", "field name is missing"),
        ("Net1", 'element 1 ("Net1")', "field name"),
        ("-net1", "element 1", "field name"),
        ("net1-", "element 1", "field name"),
        ("net.one", "element 1", "dot"),
        ("a.b/net1", "element 1", "field namespace"),
        ("net1@a:b", "element 1", "field interface"),
        ("net1@..", "element 1", "reserved"),
        ("net1@all", "element 1", "reserved"),
        ("net1,net2@default", "element 2", "reserved"),
        ("net1@net%d", "element 1", "field interface"),
        ("net1@eth5,net3,net2@eth5", "eth5", '2 elements, element 1 ("net1") and element 3 ("net2")'),
    ],
)
def test_short_form_is_refused_with_element_and_reason(text: str, element: str, why: str) -> None:
    message = refused(text)
    assert message.startswith("annotation k8s.v1.cni.cncf.io/networks ")
    assert element in message
    assert why in message


def test_json_form_carries_every_field() -> None:
    element = {
        "name": "net.with.dots",
        "namespace": "other",
        "interface": "eth5",
        "ips": ["::ffff:10.1.1.5/120", "FD00:0::5"],
        "mac": "C2B0.5749.47f1",
        "infiniband-guid": "C2-11-22-33-44-55-66-77",
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80},
            {"hostPort": 53, "containerPort": 53, "protocol": "UDP", "hostIP": "::ffff:127.0.0.1"},
        ],
        "bandwidth": {"ingressRate": 1000, "ingressBurst": 2000},
        "deviceID": "0000:03:02.1",
        "cni-args": {"vlan": 5, "nested": {"a": None}},
        "default-route": ["10.1.1.1"],
        "org.example/unknown": True,
        "macRequest": "ignored, as it always was",
    }
    assert parse_networks(json.dumps([element]), "test") == (
        Selection(
            "other",
            "net.with.dots",
            "eth5",
            ("10.1.1.5/24", "fd00::5"),
            "c2:b0:57:49:47:f1",
            "c2:11:22:33:44:55:66:77",
            (
                PortMapping(host_port=8080, container_port=80),
                PortMapping(host_port=53, container_port=53, protocol="udp", host_ip="127.0.0.1"),
            ),
            Bandwidth(ingress_rate=1000, ingress_burst=2000),
            "0000:03:02.1",
            {"vlan": msgspec.Raw(b"5"), "nested": msgspec.Raw(b'{"a": null}')},
            ("10.1.1.1",),
        ),
    )


def test_json_form_keeps_the_order() -> None:
    text = '[{"name":"net1"},{"name":"net2","ips":["1.2.3.4"]},{"name":"net3","namespace":"other"}]'
    assert [str(s) for s in parse_networks(text, "test")] == ["test/net1", "test/net2", "other/net3"]


@pytest.mark.parametrize(
    "field",
    [
        '"mac": null',
        '"mac": ""',
        '"ips": []',
        '"interface": ""',
        '"cni-args": null',
        '"namespace": ""',
        '"bandwidth": null',
    ],
)
def test_null_or_empty_field_requests_nothing(field: str) -> None:
    assert parse_networks(f'[{{"name": "net1", {field}}}]', "test") == (Selection("test", "net1"),)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ('"interfaceRequest": "old0"', "old0"),
        ('"interface": "new0", "interfaceRequest": "old0"', "new0"),
        ('"interface": "", "interfaceRequest": "old0"', "old0"),
    ],
)
def test_deprecated_interface_request_counts_where_interface_is_empty(fields: str, expected: str) -> None:
    assert parse_networks(f'[{{"name": "net1", {fields}}}]', "test")[0].ifname == expected


def test_field_names_ignore_case() -> None:
    element = {"Name": "net1", "NameSpace": "other", "Interface": "x0", "default-Route": [], "interfacerequest": "y0"}
    (selection,) = parse_networks(json.dumps([element]), "test")
    assert (str(selection), selection.ifname, selection.default_route) == ("other/net1", "x0", ())
    (exact,) = parse_networks('[{"name": "net1", "interface": "x0", "INTERFACE": "y0"}]', "test")
    assert exact.ifname == "x0"


def test_ipam_claim_reference_is_accepted_and_ignored() -> None:
    (selection,) = parse_networks('[{"name": "net1", "ipam-claim-reference": "vm-a.net1"}]', "test")
    assert selection == Selection("test", "net1", ipam_claim_reference="vm-a.net1")


def test_empty_default_route_is_a_request() -> None:
    assert parse_networks('[{"name": "net1", "default-route": []}]', "test")[0].default_route == ()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ('"interface": "sixteen_bytes_xx"', "field interface"),
        ('"interface": "a b"', "field interface"),
        ('"interface": "a/b"', "field interface"),
        ('"interface": "."', "field interface"),
        ('"interface": "a\\u0000b"', "field interface"),
        ('"interface": 5', "field interface: Expected `str`"),
        ('"ips": ["10.0.0.300"]', 'field ips[0]: "10.0.0.300" is not an IP address'),
        ('"ips": ["fd00::1/64", "10.0.0.1/33"]', 'field ips[1]: the prefix length of "10.0.0.1/33"'),
        ('"ips": ["10.0.0.1/255.255.255.0"]', "field ips[0]"),
        ('"ips": ["fe80::1%eth0"]', "field ips[0]"),
        ('"ips": ["10.0.0.1/"]', "field ips[0]"),
        ('"ips": ["10.0.0.01"]', "field ips[0]"),
        ('"ips": "10.0.0.1"', "field ips: Expected `array`"),
        ('"ips": ["10.0.0.1", 7]', "field ips[1]: Expected `str`"),
        ('"mac": "c2:b0:57"', 'field mac: "c2:b0:57" is not a hardware address'),
        ('"mac": "c2:b0:57:49:47:f1:00:01"', 'field mac: "c2:b0:57:49:47:f1:00:01" has 8 bytes'),
        ('"mac": "c2:b0-57:49:47:f1"', "field mac"),
        ('"mac": "f1:fd:59:0b:bd:2b"', 'field mac: "f1:fd:59:0b:bd:2b" is a multicast address'),
        ('"mac": "FFFF.FFFF.FFFF"', 'field mac: "FFFF.FFFF.FFFF" is a multicast address'),
        ('"mac": "00:00:00:00:00:00"', 'field mac: "00:00:00:00:00:00" is all zero'),
        ('"infiniband-guid": "c2:b0:57:49:47:f1"', 'field infiniband-guid: "c2:b0:57:49:47:f1" is not a GUID'),
        ('"portMappings": [{"hostPort": 0, "containerPort": 80}]', 'field portMappings[0]: hostPort "0"'),
        (
            '"portMappings": [{"hostPort": 80, "containerPort": 80}, {"hostPort": 81, "containerPort": 65536}]',
            'field portMappings[1]: containerPort "65536"',
        ),
        ('"portMappings": [{"hostPort": 80}]', "containerPort"),
        ('"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]', "icmp"),
        (
            '"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "localhost"}]',
            'hostIP: "localhost" is not an IP',
        ),
        ('"bandwidth": {"ingressBurst": 5}', "ingressBurst without ingressRate"),
        ('"bandwidth": {"egressRate": -1}', "bandwidth.egressRate: -1 is negative"),
        ('"bandwidth": {"ingressRate": 36893488147419103232}', "bandwidth.ingressRate"),
        ('"bandwidth": {"egressRate": "1M"}', "bandwidth.egressRate"),
        ('"cni-args": ["a"]', "field cni-args: Expected `object`"),
        ('"default-route": ["10.0.0.1/24"]', 'field default-route[0]: "10.0.0.1/24" is not an IP address'),
        ('"default-route": ["10.0.0.1", "ff02::1"]', 'field default-route[1]: holds "ff02::1"'),
        ('"default-route": ["10.0.0.1", "10.0.0.2"]', "holds 2 IPv4 gateways"),
        ('"default-route": ["10.0.0.1", "fd00::1", "fd00::2"]', "holds 2 IPv6 gateways"),
        ('"ips": ["10.0.0.1"], "ipam-claim-reference": "vm-a"', "ipam-claim-reference"),
        ('"namespace": "No"', "field namespace"),
    ],
)
def test_json_form_is_refused_with_element_and_field(fields: str, why: str) -> None:
    message = refused(f'[{{"name": "first"}}, {{"name": "second", {fields}}}]')
    assert 'element 2 ("second"): ' in message
    assert why in message


def test_infiniband_addresses_are_accepted_and_passed_on() -> None:
    text = "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:31:79:f1"
    assert parse_networks(json.dumps([{"name": "ib", "mac": text}]), "test")[0].mac == text
    assert parse_networks(json.dumps([{"name": "ib", "mac": text.upper().replace(":", "-")}]), "test")[0].mac == text


def test_an_error_carries_its_network() -> None:
    with pytest.raises(RequestFailedError) as caught:
        parse_networks('[{"name": "net1"}, {"name": "net2", "namespace": "b", "ips": ["x"]}]', "a")
    assert caught.value.failure.network == "b/net2"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[adsfasdfasdfasf]", "not valid JSON"),
        ('{"name": "net1"}', "not a list"),
        ('"net1"', "not a list"),
        ('["net1"]', "element 1: is not a JSON object"),
        ('[{"namespace": "default"}]', "element 1: field name is missing"),
        ('[{"name": ""}]', "element 1: field name is missing"),
        ('[{"name": 7}]', "element 1: field name"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"name":"a","interface":"x0"},{"name":"b","interface":"x0"}]', '"x0" for 2 elements, element 1 ("a") and'),
    ],
)
def test_json_text_is_refused_with_reason(text: str, why: str) -> None:
    assert why in refused(text)


def test_error_is_one_short_line_for_any_annotation() -> None:
    message = refused("net1@" + "x\x1b[2J\n" * 50_000)
    assert len(message) < 500
    assert message.isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("macvlan-conf", Selection("kube-system", "macvlan-conf")),
        ("test/macvlan-conf@eth9", Selection("test", "macvlan-conf", "eth9")),
        ('[{"name": "a", "namespace": "b"}]', Selection("b", "a")),
    ],
)
def test_default_network_takes_both_forms(text: str, expected: Selection) -> None:
    assert parse_default_network(text, "kube-system") == expected


@pytest.mark.parametrize("text", ["a,b", "", "[]"])
def test_default_network_has_to_be_exactly_one(text: str) -> None:
    with pytest.raises(
        RequestFailedError, match=r"v1\.multus-cni\.io/default-network selects . networks instead of one"
    ):
        parse_default_network(text, "kube-system")


@given(
    st.lists(
        st.tuples(st.none() | labels, labels, st.none() | ifnames),
        min_size=1,
        unique_by=lambda item: item[2] or object(),
    )
)
def test_short_form_round_trips(items: list[tuple[str | None, str, str | None]]) -> None:
    text = ",".join(f"{f'{ns}/' if ns else ''}{name}{f'@{ifname}' if ifname else ''}" for ns, name, ifname in items)
    assert parse_networks(text, "here") == tuple(
        Selection(ns or "here", name, ifname or "") for ns, name, ifname in items
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
elements = st.fixed_dictionaries(
    {"name": labels},
    optional={
        "namespace": labels | json_values,
        "interface": ifnames | json_values,
        "ips": st.lists(st.ip_addresses().map(str)) | json_values,
        "mac": json_values,
        "infiniband-guid": json_values,
        "portMappings": json_values,
        "bandwidth": json_values,
        "cni-args": json_values,
        "default-route": json_values,
    },
)


@given(
    st.text()
    | st.text(alphabet='ab1/@,. -"[{]}:')
    | st.text(alphabet=st.characters(categories=["Cs", "Ll"]))
    | st.lists(elements | json_values, max_size=3).map(json.dumps)
)
def test_any_text_is_selected_or_refused_as_invalid_annotation(text: str) -> None:
    selections: tuple[Selection, ...] = ()
    failure: Failure | None = None
    try:
        selections = parse_networks(text, "test")
    except RequestFailedError as error:
        failure = error.failure
    assert all(s.name and s.namespace for s in selections)
    assert not any(s.ifname and ifname_problem(s.ifname) for s in selections)
    assert failure is None or failure.error_class is ErrorClass.INVALID_ANNOTATION
    assert failure is None or error_json(failure, "1.1.0")
