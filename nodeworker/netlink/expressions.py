"""What a rule of the packet filter asks of a packet, and what it then does, in the kernel's small steps.

A step loads a part of the packet into a register, or compares the register; the rule ends at the first that fails. The
steps are those that ``nft`` would choose, so that it shows the rules as whoever reads them would have written them.

Layouts: the kernel's ``include/uapi/linux/netfilter/nf_tables.h``. Numbers are in network order.
"""

from __future__ import annotations

import struct

from nodeworker.netlink import message
from nodeworker.netlink.addresses import Address
from nodeworker.netlink.nftables import Chain
from nodeworker.netlink.routes import Network

IPV4 = 2
IPV6 = 10

_LIST_ELEMENT = 1
_NAME, _DATA = 1, 2
_VALUE, _VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_IMMEDIATE_REGISTER, _IMMEDIATE_DATA = 1, 2
_META_REGISTER, _META_KEY = 1, 2
_CMP_REGISTER, _CMP_OPERATION, _CMP_DATA = 1, 2, 3
_PAYLOAD_REGISTER, _PAYLOAD_BASE, _PAYLOAD_OFFSET, _PAYLOAD_LENGTH = 1, 2, 3, 4
_BITWISE_SOURCE, _BITWISE_TARGET, _BITWISE_LENGTH, _BITWISE_MASK, _BITWISE_XOR = 1, 2, 3, 4, 5

_FOR_VERDICTS, _REGISTER = 0, 1
_IIFNAME, _NFPROTO = 6, 15
_LINK_LAYER, _NETWORK_LAYER = 0, 1
_EQUAL, _UNEQUAL = 0, 1
_DROP, _JUMP, _GOTO, _RETURN = 0, -3, -4, -5

_IFNAME_BYTES = 16
_MAC_SOURCE = 6
_SOURCE = {4: 12, 6: 8}
_DESTINATION = {4: 16, 6: 24}
"""Where each address starts in its header (IEEE 802.3, clause 3.2; RFC 791, section 3.1; RFC 8200, section 3)."""

_I32 = struct.Struct("!i")


def of_family(family: int) -> bytes:
    """Return the expression that a packet is of *family*, ``IPV4`` or ``IPV6``; matching an address needs it before."""
    return _meta(_NFPROTO) + _compare(_EQUAL, bytes([family]))


def arrived_through(ifname: str) -> bytes:
    """Return the expression that a packet came in through *ifname*."""
    return _meta(_IIFNAME) + _compare(_EQUAL, ifname.encode().ljust(_IFNAME_BYTES, b"\0"))


def from_mac(mac: str) -> bytes:
    """Return the expression that a frame has *mac* as its source."""
    packed = bytes.fromhex(mac.replace(":", ""))
    return _load(_LINK_LAYER, _MAC_SOURCE, len(packed)) + _compare(_EQUAL, packed)


def from_address(address: Address) -> bytes:
    """Return the expression that a packet comes from *address*, whatever its network."""
    packed = address.packed
    return _load(_NETWORK_LAYER, _SOURCE[address.version], len(packed)) + _compare(_EQUAL, packed)


def to_network(network: Network, *, outside: bool = False) -> bytes:
    """Return the expression that a packet goes to *network*, or that it goes *outside*."""
    packed = network.network_address.packed
    start, comparison = _DESTINATION[network.version], _UNEQUAL if outside else _EQUAL
    whole, rest = divmod(network.prefixlen, 8)
    if whole and not rest:
        return _load(_NETWORK_LAYER, start, whole) + _compare(comparison, packed[:whole])
    masked = _expression(
        "bitwise",
        _i32(_BITWISE_SOURCE, _REGISTER),
        _i32(_BITWISE_TARGET, _REGISTER),
        _i32(_BITWISE_LENGTH, len(packed)),
        message.nested(_BITWISE_MASK, message.attribute(_VALUE, network.netmask.packed)),
        message.nested(_BITWISE_XOR, message.attribute(_VALUE, bytes(len(packed)))),
    )
    return _load(_NETWORK_LAYER, start, len(packed)) + masked + _compare(comparison, packed)


def masquerade() -> bytes:
    """Return the expression that gives a packet the node's address as its source."""
    return _expression("masq")


def drop() -> bytes:
    """Return the expression that drops a packet."""
    return _verdict(_DROP)


def leave() -> bytes:
    """Return the expression that goes on in the chain that led here, or lets the packet pass."""
    return _verdict(_RETURN)


def jump(chain: Chain) -> bytes:
    """Return the expression that goes through *chain* and then on."""
    return _verdict(_JUMP, chain.name)


def go(chain: Chain) -> bytes:
    """Return the expression that goes on in *chain*, and not here any more."""
    return _verdict(_GOTO, chain.name)


def _meta(key: int) -> bytes:
    return _expression("meta", _i32(_META_REGISTER, _REGISTER), _i32(_META_KEY, key))


def _load(base: int, offset: int, length: int) -> bytes:
    return _expression(
        "payload",
        _i32(_PAYLOAD_REGISTER, _REGISTER),
        _i32(_PAYLOAD_BASE, base),
        _i32(_PAYLOAD_OFFSET, offset),
        _i32(_PAYLOAD_LENGTH, length),
    )


def _compare(operation: int, value: bytes) -> bytes:
    data = message.nested(_CMP_DATA, message.attribute(_VALUE, value))
    return _expression("cmp", _i32(_CMP_REGISTER, _REGISTER), _i32(_CMP_OPERATION, operation), data)


def _verdict(code: int, chain: str = "") -> bytes:
    verdict = _i32(_VERDICT_CODE, code) + (message.text(_VERDICT_CHAIN, chain) if chain else b"")
    data = message.nested(_IMMEDIATE_DATA, message.nested(_VERDICT, verdict))
    return _expression("immediate", _i32(_IMMEDIATE_REGISTER, _FOR_VERDICTS), data)


def _expression(name: str, *attributes: bytes) -> bytes:
    return message.nested(_LIST_ELEMENT, message.text(_NAME, name), message.nested(_DATA, *attributes))


def _i32(kind: int, value: int) -> bytes:
    return message.attribute(kind, _I32.pack(value))
