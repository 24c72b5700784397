"""Encode and decode the few netlink messages that the worker needs, because pyroute2's classes cost too much here.

Its message modules add 10 MiB to a worker that idles at 37, on every node, and 0.04 ms to the simplest request; what is
here costs neither. The tests let pyroute2 read what this module writes, so that the layouts have a second opinion.

Layouts: RFC 3549, sections 2.2 and 2.3, and the kernel's ``include/uapi/linux/netlink.h``.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator

import msgspec

NLM_F_REQUEST = 0x1
NLM_F_MULTI = 0x2
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_DUMP = 0x300
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

NLMSG_ERROR = 2
NLMSG_DONE = 3

NESTED = 0x8000
_TYPE_MASK = 0x3FFF  # without "nested" and "big endian"

HEADER = struct.Struct("=IHHII")
"""Length, type, flags, sequence, port."""
_ATTRIBUTE = struct.Struct("=HH")
_U8 = struct.Struct("=B")
_U16 = struct.Struct("=H")
_U32 = struct.Struct("=I")


class Request(msgspec.Struct, frozen=True):
    """One message to the kernel, without its sequence number."""

    type: int
    flags: int
    """Beside ``NLM_F_REQUEST`` and ``NLM_F_ACK``, which every request has."""
    body: bytes
    fine: frozenset[int] = frozenset()
    """Errors that mean that what was asked for is so already."""


class Answer(msgspec.Struct, frozen=True):
    """One message from the kernel, without its header."""

    type: int
    body: bytes


def packed(request: Request, sequence: int) -> bytes:
    """Return *request* as it goes onto the wire, padded to the next message."""
    length = HEADER.size + len(request.body)
    flags = request.flags | NLM_F_REQUEST | NLM_F_ACK
    return HEADER.pack(length, request.type, flags, sequence, 0) + request.body + b"\0" * (-length % 4)


def attribute(kind: int, value: bytes) -> bytes:
    """Return *value* as an attribute of type *kind*."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)


def u8(kind: int, value: int) -> bytes:
    """Return an attribute with one byte."""
    return attribute(kind, _U8.pack(value))


def u16(kind: int, value: int) -> bytes:
    """Return an attribute with two bytes in the machine's order."""
    return attribute(kind, _U16.pack(value))


def u32(kind: int, value: int) -> bytes:
    """Return an attribute with four bytes in the machine's order."""
    return attribute(kind, _U32.pack(value))


def text(kind: int, value: str) -> bytes:
    """Return an attribute with a text that ends in a zero byte."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds *attributes*."""
    return attribute(kind | NESTED, b"".join(attributes))


def attributes(body: bytes, start: int = 0) -> dict[int, bytes]:
    """Return the attributes in *body* from *start* on; of several of one type, the last. What is cut short ends it.

    Not by ``each_attribute``, which takes twice as long: an interface has fifty.
    """
    found: dict[int, bytes] = {}
    unpack, end = _ATTRIBUTE.unpack_from, len(body) - 3
    while start < end:
        length, kind = unpack(body, start)
        stop = start + length
        if length < 4 or stop > end + 3:
            break
        found[kind & _TYPE_MASK] = body[start + 4 : stop]
        start += length + 3 & ~3
    return found


def each_attribute(body: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of the attributes in *body* from *start* on; what is cut short ends it."""
    end = len(body)
    while start + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(body, start)
        if length < _ATTRIBUTE.size or start + length > end:
            return
        yield kind & _TYPE_MASK, body[start + _ATTRIBUTE.size : start + length]
        start += length + (-length % 4)


def as_int(value: bytes | None, default: int = 0) -> int:
    """Return the unsigned number in *value*, in the machine's order, or *default* if there is none."""
    return int.from_bytes(value, sys.byteorder) if value else default


def as_text(value: bytes | None) -> str:
    """Return the text in *value* up to its zero byte; empty if there is none."""
    return value.split(b"\0", 1)[0].decode(errors="replace") if value else ""
