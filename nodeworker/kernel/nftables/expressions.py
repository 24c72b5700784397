"""The expressions of packet filter rules: what a rule compares in a packet, and what it then does.

They are the expressions that ``nft`` writes, so ``nft`` lists such a rule like its own rules.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Final, TypeAlias

import msgspec

from nodeworker.kernel import codec, wire
from nodeworker.kernel.codec import Attributes, Values
from nodeworker.kernel.layouts import nftsocket, rtnl
from nodeworker.kernel.rtnetlink.addresses import Address
from nodeworker.kernel.rtnetlink.routes import Network

Expression: TypeAlias = Values

_RULE = codec.layout(nftsocket.nft_rule_msg)
_VERDICT = codec.layout(nftsocket.nft_data.nfta_data.verdict)
_MAC_OFFSET: Final = 6
_OFFSETS = {4: (12, 16), 6: (8, 24)}
"""Of source and destination in the IP header, by version."""


class Sought(msgspec.Struct, frozen=True):
    """The address that a rule compares in a packet's IP header."""

    source: bool
    """Whether it is the source; else the destination."""
    network: Network
    elsewhere: bool = False
    """Whether the rule is for addresses outside of the network, not inside."""


def comes_in_by(ifname: str) -> tuple[Expression, ...]:
    """Return the expressions for packets that come in through the interface *ifname*."""
    name = ifname.encode().ljust(rtnl.IFNAMSIZ, b"\0")
    return _load_meta("NFT_META_IIFNAME"), _compare("NFT_CMP_EQ", name)


def came_in_by(expressions: bytes) -> str:
    """Return the interface of a rule whose *expressions* begin like ``comes_in_by``, else an empty text."""
    elements = _decode(expressions)[:2]
    if [each.get("NFTA_EXPR_NAME") for each in elements] != ["meta", "cmp"]:
        return ""
    meta, cmp = (each["NFTA_EXPR_DATA"] for each in elements)
    if (meta.get("NFTA_META_KEY"), cmp.get("NFTA_CMP_OP")) != ("NFT_META_IIFNAME", "NFT_CMP_EQ"):
        return ""
    return wire.as_text(_data_value(cmp.get("NFTA_CMP_DATA")))


def sent_by(mac: str) -> tuple[Expression, ...]:
    """Return the expressions for frames whose sender is *mac*."""
    sender = bytes.fromhex(mac.replace(":", ""))
    return _load_payload("NFT_PAYLOAD_LL_HEADER", _MAC_OFFSET, len(sender)), _compare("NFT_CMP_EQ", sender)


def comes_from(address: Address) -> tuple[Expression, ...]:
    """Return the expressions for packets from *address*. They compare the IP version too, for a table of both."""
    offset, _ = _OFFSETS[address.version]
    packed = address.ip.packed
    load = _load_payload("NFT_PAYLOAD_NETWORK_HEADER", offset, len(packed))
    return *_of_version(address.version), load, _compare("NFT_CMP_EQ", packed)


def goes_to(network: Network) -> tuple[Expression, ...]:
    """Return the expressions for packets to *network*. They compare the IP version too."""
    return *_of_version(network.version), *_destination(network, "NFT_CMP_EQ")


def goes_elsewhere(network: Network) -> tuple[Expression, ...]:
    """Return the expressions for packets, of the IP version of *network*, to an address outside of it."""
    return _destination(network, "NFT_CMP_NEQ")


def sought(version: int, expressions: bytes) -> Sought | None:
    """Return the address that a rule with *expressions* compares; None if it compares none, or several.

    A rule may compare a whole address, its first bytes, or its bits under a mask.
    """
    compared: list[Sought] = []
    source, mask = None, b""
    for element in _decode(expressions):
        name = element.get("NFTA_EXPR_NAME")
        if name == "payload":
            data = element["NFTA_EXPR_DATA"]
            offset, length = data.get("NFTA_PAYLOAD_OFFSET", 0), data.get("NFTA_PAYLOAD_LEN", 0)
            is_header = data.get("NFTA_PAYLOAD_BASE") == "NFT_PAYLOAD_NETWORK_HEADER"
            is_address = is_header and offset in _OFFSETS[version] and length <= (4 if version == 4 else 16)
            source, mask = (offset == _OFFSETS[version][0] if is_address else None), b"\xff" * length
        elif name == "bitwise":
            mask = _data_value(element["NFTA_EXPR_DATA"].get("NFTA_BITWISE_MASK"))
        elif name == "cmp" and source is not None:
            data = element["NFTA_EXPR_DATA"]
            network = _network(version, _data_value(data.get("NFTA_CMP_DATA")), mask)
            compared.append(Sought(source, network, elsewhere=data.get("NFTA_CMP_OP") == "NFT_CMP_NEQ"))
    return compared[0] if len(compared) == 1 else None


def masquerade() -> Expression:
    """Return the statement that gives a packet the address of the interface that it leaves through."""
    return _expression("masq", {})


def jump(chain: str) -> Expression:
    """Return the verdict to continue with the rules of *chain*, and to return after them."""
    return _verdict("NFT_JUMP", chain)


def goto(chain: str) -> Expression:
    """Return the verdict to continue with the rules of *chain*."""
    return _verdict("NFT_GOTO", chain)


def verdict_chain(chain: str) -> bytes:
    """Return the bytes in the expressions of every rule that leads to *chain*, by ``jump`` or by ``goto``."""
    return _VERDICT.encode({"NFTA_VERDICT_CHAIN": chain})


def return_() -> Expression:
    """Return the verdict to leave the chain."""
    return _verdict("NFT_RETURN")


def drop() -> Expression:
    """Return the verdict to drop the packet."""
    return _verdict("NF_DROP")


def _decode(expressions: bytes) -> list[Attributes]:
    return _RULE.read("NFTA_RULE_EXPRESSIONS", expressions)


def _data_value(data: Attributes | None) -> bytes:
    return data.get("NFTA_DATA_VALUE", b"") if data is not None else b""


def _network(version: int, value: bytes, mask: bytes) -> Network:
    length = int.from_bytes(mask, "big").bit_count()
    if version == 4:
        return ipaddress.IPv4Network((value.ljust(4, b"\0"), length), strict=False)
    return ipaddress.IPv6Network((value.ljust(16, b"\0"), length), strict=False)


def _destination(network: Network, operator: str) -> tuple[Expression, ...]:
    """Compare as few bytes as ``nft`` does: it does not mask whole ones."""
    _, offset = _OFFSETS[network.version]
    packed = network.network_address.packed
    whole, rest = divmod(network.prefixlen, 8)
    if whole and not rest:
        return _load_payload("NFT_PAYLOAD_NETWORK_HEADER", offset, whole), _compare(operator, packed[:whole])
    mask = _expression(
        "bitwise",
        {
            "NFTA_BITWISE_SREG": "NFT_REG_1",
            "NFTA_BITWISE_DREG": "NFT_REG_1",
            "NFTA_BITWISE_LEN": len(packed),
            "NFTA_BITWISE_MASK": {"NFTA_DATA_VALUE": network.netmask.packed},
            "NFTA_BITWISE_XOR": {"NFTA_DATA_VALUE": bytes(len(packed))},
        },
    )
    load = _load_payload("NFT_PAYLOAD_NETWORK_HEADER", offset, len(packed))
    return load, mask, _compare(operator, packed)


def _of_version(version: int) -> tuple[Expression, ...]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return _load_meta("NFT_META_NFPROTO"), _compare("NFT_CMP_EQ", bytes([family]))


def _expression(name: str, data: Values) -> Expression:
    return {"NFTA_EXPR_NAME": name, "NFTA_EXPR_DATA": data}


def _load_meta(key: str) -> Expression:
    return _expression("meta", {"NFTA_META_KEY": key, "NFTA_META_DREG": "NFT_REG_1"})


def _load_payload(base: str, offset: int, length: int) -> Expression:
    return _expression(
        "payload",
        {
            "NFTA_PAYLOAD_DREG": "NFT_REG_1",
            "NFTA_PAYLOAD_BASE": base,
            "NFTA_PAYLOAD_OFFSET": offset,
            "NFTA_PAYLOAD_LEN": length,
        },
    )


def _compare(operator: str, value: bytes) -> Expression:
    data = {"NFTA_DATA_VALUE": value}
    return _expression("cmp", {"NFTA_CMP_SREG": "NFT_REG_1", "NFTA_CMP_OP": operator, "NFTA_CMP_DATA": data})


def _verdict(code: str, chain: str | None = None) -> Expression:
    verdict = {"NFTA_DATA_VERDICT": {"NFTA_VERDICT_CODE": code, "NFTA_VERDICT_CHAIN": chain}}
    return _expression("immediate", {"NFTA_IMMEDIATE_DREG": "NFT_REG_VERDICT", "NFTA_IMMEDIATE_DATA": verdict})
