"""Our codec and pyroute2's own read each other's messages alike, for every kind of message that the worker sends."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeworker.kernel import codec, wire
from nodeworker.kernel.layouts import (
    AF_BRIDGE,
    LinkMessage,
    fibmsg,
    ifaddrmsg,
    ifinfmsg,
    nftsocket,
    nl,
    nlmsg,
    nsidmsg,
    rtmsg,
)

HEADER = wire.packed(nlmsg.header).size


class Value(NamedTuple):
    """A value as our codec has it, as pyroute2 decodes it, and as pyroute2 encodes it."""

    ours: Any
    decoded: Any
    encoded: Any


class Fields(NamedTuple):
    """The fields and attributes of a message, or of a nested attribute."""

    fields: dict[str, Value]
    attributes: list[tuple[str, Any]]
    """Each a name and a Value, a Fields, or a list of Fields for an array."""


def same(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Value]:
    return values.map(lambda value: Value(value, value, value))


def number(bits: int) -> st.SearchStrategy[Value]:
    return same(st.integers(0, 2**bits - 1))


U8, U16, U32, U64 = map(number, (8, 16, 32, 64))
INT32 = same(st.integers(-(2**31), 2**31 - 1))


def address(number: int, packed: bytes) -> Value:
    text = socket.inet_ntop(number, packed)
    return Value(packed, text, text)


TEXT = same(st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=15))
BYTES = same(st.binary(min_size=1, max_size=16))
MAC = same(st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":")))
IPV4, IPV6 = (
    st.binary(min_size=size, max_size=size).map(lambda raw, number=number: address(number, raw))
    for number, size in ((socket.AF_INET, 4), (socket.AF_INET6, 16))
)


def named(names: Mapping[int, str]) -> st.SearchStrategy[Value]:
    """Return names of numbers, which pyroute2 decodes and does not encode."""
    numbers = sorted(names)
    return st.sampled_from(numbers).map(lambda each: Value(names[each], names[each], each))


def optional(attributes: Mapping[str, st.SearchStrategy[Any]], **fields: st.SearchStrategy[Value]) -> Any:
    chosen = st.fixed_dictionaries({}, optional=dict(attributes)).map(lambda found: list(found.items()))
    return st.builds(Fields, st.fixed_dictionaries(fields), chosen)


def every(attributes: Mapping[str, st.SearchStrategy[Any]]) -> Any:
    """Return all *attributes* in their order: the kernel and pyroute2 read a kind before its data."""
    pairs = [st.tuples(st.just(name), value) for name, value in attributes.items()]
    return st.builds(Fields, st.just({}), st.tuples(*pairs).map(list))


def info(kind: str, data: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return every({"IFLA_INFO_KIND": same(st.just(kind)), "IFLA_INFO_DATA": data})


COMMON = {"IFLA_IFNAME": TEXT, "IFLA_MTU": U32, "IFLA_TXQLEN": U32, "IFLA_NET_NS_FD": U32}
DATA = {
    "macvlan": {"IFLA_MACVLAN_MODE": same(st.sampled_from(["private", "vepa", "bridge", "passthru", "source"]))},
    "ipvlan": {"IFLA_IPVLAN_MODE": U16},
    "vlan": {"IFLA_VLAN_ID": U16},
    "vrf": {"IFLA_VRF_TABLE": U32},
    "tun": {"IFLA_TUN_OWNER": U32, "IFLA_TUN_GROUP": U32, "IFLA_TUN_TYPE": U8, "IFLA_TUN_MULTI_QUEUE": U8},
    "bridge": {"IFLA_BR_VLAN_FILTERING": U8, "IFLA_BR_VLAN_DEFAULT_PVID": U16},
    "veth": {"VETH_INFO_PEER": optional(COMMON, index=INT32, flags=U32)},
    "vxlan": {
        "IFLA_VXLAN_ID": U32,
        "IFLA_VXLAN_LINK": U32,
        "IFLA_VXLAN_TTL": U8,
        "IFLA_VXLAN_LEARNING": U8,
        "IFLA_VXLAN_PORT": U16,
        "IFLA_VXLAN_GROUP": IPV4,
        "IFLA_VXLAN_LOCAL": IPV4,
        "IFLA_VXLAN_GROUP6": IPV6,
        "IFLA_VXLAN_LOCAL6": IPV6,
    },
}
LINK = {
    **COMMON,
    "IFLA_ADDRESS": MAC,
    "IFLA_LINK": U32,
    "IFLA_LINK_NETNSID": INT32,
    "IFLA_MASTER": U32,
    "IFLA_GROUP": U32,
    "IFLA_EXT_MASK": U32,
    "IFLA_IFALIAS": TEXT,
    "IFLA_LINKINFO": st.one_of([info(kind, optional(data)) for kind, data in DATA.items()]),
    "IFLA_PROP_LIST": optional({"IFLA_ALT_IFNAME": TEXT}),
}
VLAN = st.builds(Fields, st.fixed_dictionaries({"flags": U16, "vid": U16}), st.just([]))
VLANS = st.builds(
    lambda flags, vlans: Fields(
        {}, [("IFLA_BRIDGE_VLAN_FLAGS", flags), *(("IFLA_BRIDGE_VLAN_INFO", v) for v in vlans)]
    ),
    U16,
    st.lists(VLAN, max_size=3),
)
PORT = {
    "IFLA_PROTINFO": optional({"IFLA_BRPORT_MODE": U8, "IFLA_BRPORT_ISOLATED": U8}),
    "IFLA_AF_SPEC": VLANS,
}
PARAMETERS = every({"AF_INET": every({"IFLA_INET_CONF": every({"IPV4_DEVCONF_ARP_NOTIFY": U32})})})
HOP = st.builds(
    Fields,
    st.fixed_dictionaries({"flags": U8, "hops": U8, "oif": INT32}),
    st.fixed_dictionaries({}, optional={"RTA_GATEWAY": IPV4}).map(lambda each: [*each.items()]),
)
ROUTE = {
    "RTA_OIF": U32,
    "RTA_PRIORITY": U32,
    "RTA_TABLE": U32,
    "RTA_METRICS": optional({"RTAX_MTU": U32, "RTAX_ADVMSS": U32}),
}
HOST = {"dst_len": U8, "table": U8, "proto": U8, "scope": U8, "type": U8, "flags": U32}

REGISTERS = named({each.value: each.name for each in nftsocket.Regs})
VALUE = every({"NFTA_DATA_VALUE": BYTES})
VERDICTS = nftsocket.nft_data.nfta_data.verdict.verdict_code.ops
EXPRESSIONS = {
    "meta": {"NFTA_META_KEY": named({each.value: each.name for each in nftsocket.Meta}), "NFTA_META_DREG": REGISTERS},
    "cmp": {
        "NFTA_CMP_SREG": REGISTERS,
        "NFTA_CMP_OP": named({each.value: each.name for each in nftsocket.Cmp}),
        "NFTA_CMP_DATA": VALUE,
    },
    "payload": {
        "NFTA_PAYLOAD_DREG": REGISTERS,
        "NFTA_PAYLOAD_BASE": named(nftsocket.nft_contains_expr.nft_expr.nft_payload.base_type.ops),
        "NFTA_PAYLOAD_OFFSET": U32,
        "NFTA_PAYLOAD_LEN": U32,
    },
    "bitwise": {
        "NFTA_BITWISE_SREG": REGISTERS,
        "NFTA_BITWISE_DREG": REGISTERS,
        "NFTA_BITWISE_LEN": U32,
        "NFTA_BITWISE_MASK": VALUE,
        "NFTA_BITWISE_XOR": VALUE,
    },
    "immediate": {
        "NFTA_IMMEDIATE_DREG": REGISTERS,
        "NFTA_IMMEDIATE_DATA": every(
            {"NFTA_DATA_VERDICT": every({"NFTA_VERDICT_CODE": named(VERDICTS), "NFTA_VERDICT_CHAIN": TEXT})}
        ),
    },
    "masq": {},
}
RULE = {
    "NFTA_RULE_TABLE": TEXT,
    "NFTA_RULE_CHAIN": TEXT,
    "NFTA_RULE_HANDLE": U64,
    "NFTA_RULE_USERDATA": TEXT,
    "NFTA_RULE_EXPRESSIONS": st.lists(
        st.one_of(
            [
                every({"NFTA_EXPR_NAME": same(st.just(name)), "NFTA_EXPR_DATA": optional(data)})
                for name, data in EXPRESSIONS.items()
            ]
        ),
        min_size=1,
        max_size=4,
    ),
}
CHAIN = {
    "NFTA_CHAIN_TABLE": TEXT,
    "NFTA_CHAIN_NAME": TEXT,
    "NFTA_CHAIN_HOOK": every({"NFTA_HOOK_HOOKNUM": U32, "NFTA_HOOK_PRIORITY": INT32}),
    "NFTA_CHAIN_TYPE": TEXT,
    "NFTA_CHAIN_POLICY": U32,
    "NFTA_CHAIN_USERDATA": TEXT,
}


def family(number: int) -> st.SearchStrategy[Value]:
    return same(st.just(number))


MESSAGES: dict[str, tuple[type[Any], st.SearchStrategy[Fields]]] = {
    "link": (LinkMessage, optional(LINK, family=family(socket.AF_UNSPEC), index=INT32, flags=U32, change=U32)),
    "parameters": (LinkMessage, optional({"IFLA_AF_SPEC": PARAMETERS}, family=family(0), index=INT32)),
    "port": (LinkMessage, optional(PORT, family=family(AF_BRIDGE), index=INT32)),
    "namespace": (nsidmsg.nsidmsg, optional({"NETNSA_NSID": U32, "NETNSA_FD": U32}, rtgen_family=U8)),
    "rule": (fibmsg.fibmsg, optional({"FRA_SRC": IPV4, "FRA_PRIORITY": U32, "FRA_TABLE": U32}, family=U8, src_len=U8)),
    "rule6": (fibmsg.fibmsg, optional({"FRA_SRC": IPV6}, family=family(socket.AF_INET6), table=U8, action=U8)),
    **{
        f"address{version}": (
            ifaddrmsg.ifaddrmsg,
            optional(
                {"IFA_LOCAL": ip, "IFA_ADDRESS": ip, "IFA_BROADCAST": ip, "IFA_FLAGS": U32},
                family=family(number),
                prefixlen=U8,
                flags=U8,
                scope=U8,
                index=U32,
            ),
        )
        for version, number, ip in ((4, socket.AF_INET, IPV4), (6, socket.AF_INET6, IPV6))
    },
    **{
        f"route{version}": (
            rtmsg.rtmsg,
            optional({**ROUTE, "RTA_DST": ip, "RTA_GATEWAY": ip, "RTA_PREFSRC": ip}, family=family(number), **HOST),
        )
        for version, number, ip in ((4, socket.AF_INET, IPV4), (6, socket.AF_INET6, IPV6))
    },
    "hops": (
        rtmsg.rtmsg,
        optional({"RTA_MULTIPATH": st.lists(HOP, min_size=1, max_size=3)}, family=family(socket.AF_INET)),
    ),
    "nft_table": (
        nftsocket.nft_table_msg,
        optional({"NFTA_TABLE_NAME": TEXT, "NFTA_TABLE_USERDATA": TEXT}, nfgen_family=U8),
    ),
    "nft_chain": (nftsocket.nft_chain_msg, optional(CHAIN, nfgen_family=U8, res_id=U16)),
    "nft_rule": (nftsocket.nft_rule_msg, optional(RULE, nfgen_family=U8, res_id=U16)),
    "nft_generation": (nftsocket.nft_gen_msg, optional({"NFTA_GEN_ID": U32}, nfgen_family=U8, res_id=U16)),
}


def ours(message: Fields) -> dict[str, Any]:
    """Return *message* as our codec takes and gives it."""
    found: dict[str, Any] = {name: value.ours for name, value in message.fields.items()}
    for name, value in message.attributes:
        plain = each_of(value, ours, lambda leaf: leaf.ours)
        found[name] = [*found[name], plain] if name == "IFLA_BRIDGE_VLAN_INFO" and name in found else plain
        if name == "IFLA_BRIDGE_VLAN_INFO" and not isinstance(found[name], list):
            found[name] = [plain]
    return found


def each_of(value: Any, of_fields: Callable[[Fields], Any], of_leaf: Callable[[Value], Any]) -> Any:
    if isinstance(value, list):
        return [of_fields(each) for each in value]
    return of_fields(value) if isinstance(value, Fields) else of_leaf(value)


def theirs(message: Fields) -> dict[str, Any]:
    """Return *message* as pyroute2 encodes it."""
    fields = {name: value.encoded for name, value in message.fields.items()}
    attributes = [(name, each_of(value, theirs, lambda leaf: leaf.encoded)) for name, value in message.attributes]
    return {**fields, "attrs": attributes}


def assert_decoded(message: Any, expected: Fields) -> None:
    """Compare what pyroute2 decoded with *expected*."""
    for name, value in expected.fields.items():
        assert message[name] == value.decoded
    found = [(each[0], each[1]) for each in dict.get(message, "attrs") or []]
    assert [name for name, _ in found] == [name for name, _ in expected.attributes]
    for (_, value), (_, wanted) in zip(found, expected.attributes, strict=True):
        if isinstance(wanted, list):
            for each, part in zip(value, wanted, strict=True):
                assert_decoded(each, part)
        elif isinstance(wanted, Fields):
            assert_decoded(value, wanted)
        else:
            assert value == wanted.decoded


def plain(found: Any, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Return what our codec decoded of the names in *expected*."""
    values: dict[str, Any] = {}
    for name, wanted in expected.items():
        is_array = isinstance(wanted, list)
        value = found.repeated(name) if name == "IFLA_BRIDGE_VLAN_INFO" else found[name]
        if is_array:
            values[name] = [plain(each, part) for each, part in zip(value, wanted, strict=True)]
        else:
            values[name] = plain(value, wanted) if isinstance(wanted, dict) else value
    return values


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.data())
def test_pyroute2_decodes_the_messages_of_our_codec(kind: str, data: st.DataObject) -> None:
    described, messages = MESSAGES[kind]
    expected = data.draw(messages)
    body = codec.layout(described).encode(ours(expected))
    message = described(wire.packed(nlmsg.header).pack(HEADER + len(body), 0, 0, 0, 0) + body)
    message.decode()
    assert_decoded(message, expected)


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.data())
def test_our_codec_decodes_the_messages_of_pyroute2(kind: str, data: st.DataObject) -> None:
    described, messages = MESSAGES[kind]
    expected = data.draw(messages)
    message = described()
    message.update(theirs(expected))
    message.encode()
    found = codec.layout(described).decode(bytes(message.data)[HEADER:])
    assert plain(found, ours(expected)) == ours(expected)
    assert set(ours(expected)) <= set(found)


@pytest.mark.parametrize("name", ["IFLA_NO_SUCH", "indx"])
def test_a_name_that_the_layout_lacks_is_an_error(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        codec.layout(LinkMessage).encode({name: 1})
    with pytest.raises(KeyError, match=name):
        codec.layout(LinkMessage).decode(bytes(16)).get(name)


def test_fields_of_mixed_byte_order_are_an_error() -> None:
    assert wire.packed([("family", "B"), ("id", "!H")]).pack(1, 2) == b"\1\0\2"
    with pytest.raises(TypeError, match="mixed byte order"):
        wire.packed([("index", "I"), ("id", "!H")])


def test_a_vlan_info_repeats_and_the_last_is_the_mapping_s() -> None:
    infos = [{"flags": 0, "vid": 7}, {"flags": 2, "vid": 9}]
    spec = {"IFLA_BRIDGE_FLAGS": 1, "IFLA_BRIDGE_VLAN_INFO": infos}
    layout = codec.layout(LinkMessage)
    found = layout.decode(layout.encode({"family": AF_BRIDGE, "IFLA_AF_SPEC": spec}))["IFLA_AF_SPEC"]
    assert [dict(each) for each in found.repeated("IFLA_BRIDGE_VLAN_INFO")] == infos
    assert found["IFLA_BRIDGE_VLAN_INFO"] == infos[-1]


def test_attributes_are_equal_by_their_content() -> None:
    layout = codec.layout(ifinfmsg.ifinfmsg)
    first, second = (layout.decode(layout.encode(each)) for each in ({"IFLA_MTU": 7}, {"IFLA_MTU": 7}))
    assert first == second
    assert first != layout.decode(layout.encode({"IFLA_MTU": 8}))


def test_an_error_of_the_kernel_is_one_of_pyroute2_s_messages() -> None:
    layout = codec.layout(nl.nlmsgerr)
    found = layout.decode(layout.encode({"error": -1, "NLMSGERR_ATTR_MSG": "no"}))
    assert (found["error"], found["NLMSGERR_ATTR_MSG"]) == (-1, "no")
