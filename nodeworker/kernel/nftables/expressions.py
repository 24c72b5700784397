"""What a packet filter's rule consists of: what it looks at in a packet, and what it then does.

Laid out as ``nft`` does it, so that it lists such a rule like one of its own. Layouts: the kernel's
``include/uapi/linux/netfilter/nf_tables.h``.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import TypeAlias

import msgspec

from nodeworker.kernel.rtnetlink import message
from nodeworker.kernel.rtnetlink.addresses import Address
from nodeworker.kernel.rtnetlink.routes import Network

Expression: TypeAlias = bytes

_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_JUMP, _GOTO, _RETURN, _DROP = -3, -4, -5, 0
_META_KEY, _META_INPUT_NAME, _META_PROTOCOL = 2, 6, 15
_LINK_HEADER, _NETWORK_HEADER = 0, 1
_COMPARED_OPERATOR, _COMPARED_DATA = 2, 3
_EQUAL, _DIFFERENT = 0, 1
_VERDICT_REGISTER, _REGISTER = 0, 1
_NAME_BYTES = 16
_MAC_OFFSET = 6
_OFFSETS = {4: (12, 16), 6: (8, 24)}
"""Of source and destination in the IP header, by version."""

_U32 = struct.Struct("!I")
_I32 = struct.Struct("!i")


class Sought(msgspec.Struct, frozen=True):
    """What a rule seeks in a packet's IP header."""

    source: bool
    """Or else the destination."""
    network: Network
    """In which it is."""
    elsewhere: bool = False
    """In which it is not, rather."""


def comes_in_by(ifname: str) -> tuple[Expression, ...]:
    """Return what is true of packets that come in by the interface *ifname*."""
    return _loaded(_META_INPUT_NAME), _compared(_EQUAL, ifname.encode().ljust(_NAME_BYTES, b"\0"))


def came_in_by(expressions: bytes) -> str:
    """Return the interface of a rule whose *expressions* begin like ``comes_in_by``, else an empty text."""
    elements = [message.attributes(each) for _, each in message.each_attribute(expressions)][:2]
    if [message.as_text(each.get(_EXPRESSION_NAME)) for each in elements] != ["meta", "cmp"]:
        return ""
    loaded, compared = (message.attributes(each.get(_EXPRESSION_DATA, b"")) for each in elements)
    key, operator = loaded.get(_META_KEY), compared.get(_COMPARED_OPERATOR)
    if (key, operator) != (_U32.pack(_META_INPUT_NAME), _U32.pack(_EQUAL)):
        return ""
    return message.as_text(message.attributes(compared.get(_COMPARED_DATA, b"")).get(_DATA_VALUE))


def sent_by(mac: str) -> tuple[Expression, ...]:
    """Return what is true of frames that *mac* is the sender of."""
    sender = bytes.fromhex(mac.replace(":", ""))
    return _read(_LINK_HEADER, _MAC_OFFSET, len(sender)), _compared(_EQUAL, sender)


def comes_from(address: Address) -> tuple[Expression, ...]:
    """Return what is true of packets from *address*; it also settles the version, in a table of both."""
    offset, _ = _OFFSETS[address.version]
    packed = address.ip.packed
    return *_of_version(address.version), _read(_NETWORK_HEADER, offset, len(packed)), _compared(_EQUAL, packed)


def goes_to(network: Network) -> tuple[Expression, ...]:
    """Return what is true of packets into *network*."""
    return *_of_version(network.version), *_destination(network, _EQUAL)


def goes_elsewhere(network: Network) -> tuple[Expression, ...]:
    """Return what is true of packets, of the version of *network*, that go elsewhere."""
    return _destination(network, _DIFFERENT)


def sought(version: int, expressions: bytes) -> Sought | None:
    """Return what a rule with *expressions* seeks in a packet's IP header, None unless it is one address.

    It may compare a whole address, as many bytes of it as matter, or what a mask leaves of it.
    """
    compared: list[Sought] = []
    source, mask = None, b""
    for _, each in message.each_attribute(expressions):
        element = message.attributes(each)
        name, data = message.as_text(element.get(_EXPRESSION_NAME)), element.get(_EXPRESSION_DATA, b"")
        found = message.attributes(data)
        if name == "payload":
            header, offset, length = (int.from_bytes(found.get(kind, b""), "big") for kind in (2, 3, 4))
            one = length <= (4 if version == 4 else 16)
            known = one and header == _NETWORK_HEADER and offset in _OFFSETS[version]
            source, mask = (offset == _OFFSETS[version][0] if known else None), b"\xff" * length
        elif name == "bitwise":
            mask = message.attributes(found.get(4, b"")).get(_DATA_VALUE, b"")
        elif name == "cmp" and source is not None:
            value = message.attributes(found.get(_COMPARED_DATA, b"")).get(_DATA_VALUE, b"")
            differs = found.get(_COMPARED_OPERATOR) == _U32.pack(_DIFFERENT)
            compared.append(Sought(source, _network(version, value, mask), elsewhere=differs))
    return compared[0] if len(compared) == 1 else None


def _network(version: int, value: bytes, mask: bytes) -> Network:
    length = int.from_bytes(mask, "big").bit_count()
    if version == 4:
        return ipaddress.IPv4Network((value.ljust(4, b"\0"), length), strict=False)
    return ipaddress.IPv6Network((value.ljust(16, b"\0"), length), strict=False)


def masqueraded() -> Expression:
    """Return the statement that gives a packet the address of the interface that it leaves through."""
    return _expression("masq")


def jump(chain: str) -> Expression:
    """Return the verdict to go on with the rules of a chain, and to come back after them."""
    return _verdict(_JUMP, chain)


def goto(chain: str) -> Expression:
    """Return the verdict to go on with the rules of a chain."""
    return _verdict(_GOTO, chain)


def way_to(chain: str) -> bytes:
    """Return what the expressions of a rule hold that leads to *chain*, be it by ``jump`` or ``goto``."""
    return message.text(_VERDICT_CHAIN, chain)


def returned() -> Expression:
    """Return the verdict to leave the chain."""
    return _verdict(_RETURN)


def dropped() -> Expression:
    """Return the verdict to throw the packet away."""
    return _verdict(_DROP)


def _destination(network: Network, operator: int) -> tuple[Expression, ...]:
    """Compare as few bytes as ``nft`` does: whole ones are not masked."""
    _, offset = _OFFSETS[network.version]
    packed = network.network_address.packed
    whole, rest = divmod(network.prefixlen, 8)
    if whole and not rest:
        return _read(_NETWORK_HEADER, offset, whole), _compared(operator, packed[:whole])
    mask = _expression(
        "bitwise",
        _number(1, _REGISTER),
        _number(2, _REGISTER),
        _number(3, len(packed)),
        message.nested(4, message.attribute(_DATA_VALUE, network.netmask.packed)),
        message.nested(5, message.attribute(_DATA_VALUE, bytes(len(packed)))),
    )
    return _read(_NETWORK_HEADER, offset, len(packed)), mask, _compared(operator, packed)


def _of_version(version: int) -> tuple[Expression, ...]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return _loaded(_META_PROTOCOL), _compared(_EQUAL, bytes([family]))


def _expression(name: str, *attributes: bytes) -> Expression:
    data = message.nested(_EXPRESSION_DATA, *attributes)
    return message.text(_EXPRESSION_NAME, name) + data


def _loaded(key: int) -> Expression:
    return _expression("meta", _number(_META_KEY, key), _number(1, _REGISTER))


def _read(header: int, offset: int, length: int) -> Expression:
    return _expression("payload", _number(1, _REGISTER), _number(2, header), _number(3, offset), _number(4, length))


def _compared(operator: int, value: bytes) -> Expression:
    data = message.nested(_COMPARED_DATA, message.attribute(_DATA_VALUE, value))
    return _expression("cmp", _number(1, _REGISTER), _number(_COMPARED_OPERATOR, operator), data)


def _verdict(code: int, to: str = "") -> Expression:
    verdict = message.attribute(_VERDICT_CODE, _I32.pack(code)) + (way_to(to) if to else b"")
    data = message.nested(2, message.nested(_DATA_VERDICT, verdict))
    return _expression("immediate", _number(1, _VERDICT_REGISTER), data)


def _number(kind: int, value: int) -> bytes:
    return message.attribute(kind, _U32.pack(value))
