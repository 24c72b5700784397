"""The bytes of netlink messages: attributes with header and padding, and the values in them."""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from nodeworker.kernel.layouts import nl

HEADER = struct.Struct("=HH")
"""The length and type of an attribute (RFC 3549, section 2.2)."""
PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
"""What follows a value, by its length modulo 4."""
_TYPE_MASK: Final = 0xFFFF & ~(nl.NLA_F_NESTED | nl.NLA_F_NET_BYTEORDER)


def attribute(kind: int, value: bytes) -> bytes:
    """Return *value* as an attribute of type *kind*."""
    length = len(value)
    return HEADER.pack(length + 4, kind) + value + PADDING[length & 3]


def split(body: bytes, start: int = 0) -> dict[int, bytes]:
    """Return the attributes in *body* from *start* on; of several of one type, the last. What is cut short ends it.

    Not by ``each_attribute``, which takes twice as long: an interface has fifty.
    """
    found: dict[int, bytes] = {}
    unpack, end = HEADER.unpack_from, len(body) - 3
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
    while start + HEADER.size <= end:
        length, kind = HEADER.unpack_from(body, start)
        if length < HEADER.size or start + length > end:
            return
        yield kind & _TYPE_MASK, body[start + HEADER.size : start + length]
        start += length + (-length % 4)


def cells(raw: bytes, size: int) -> Iterator[bytes]:
    """Yield the elements in *raw*, each with its header of *size* bytes; what is cut short ends them."""
    start = 0
    while start + size <= len(raw):
        length = int.from_bytes(raw[start : start + 2], sys.byteorder)
        if length < size or start + length > len(raw):
            return
        yield raw[start : start + length]
        start += length + (-length % 4)


def packed(fields: Iterable[tuple[str, str]]) -> struct.Struct:
    """Return the layout of *fields*, each a name and a format, in the machine's order unless all say otherwise."""
    formats = [each for _, each in fields]
    orders = {each[0] for each in formats if each[0] in "<>!="}
    sizes = {struct.calcsize(each) for each in formats if each[0] not in "<>!=" and each[-1] not in "sx"}
    if len(orders) > 1 or (orders - {"="} and sizes - {1}):
        raise TypeError(f"fields of mixed byte order: {formats}")
    return struct.Struct((orders.pop() if orders else "=") + "".join(each.lstrip("<>!=") for each in formats))


def converters(described: type[Any]) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    """Return what turns a value of *described*, which holds no attributes, into bytes and back."""
    atoms = nl.nlmsg_atoms
    if issubclass(described, atoms.asciiz):
        return _text_bytes, as_text
    if issubclass(described, atoms.l2addr):
        return lambda value: bytes.fromhex(value.replace(":", "")), lambda raw: raw.hex(":")
    if issubclass(described, nl.nla_base_string) or not described.fields:
        return bytes, bytes
    ((_, form),) = described.fields
    if not isinstance(form, str):
        return functools.partial(_encoded_by, form), lambda raw: form.decode_from(raw)[0]
    return _number(packed(described.fields), described.value_map or getattr(described, "ops", None) or {})


def _text_bytes(value: str | bytes) -> bytes:
    """Return *value* with a zero byte behind it; bytes as they are."""
    return value if isinstance(value, bytes) else value.encode() + b"\0"


def as_text(value: bytes) -> str:
    """Return the text in *value* up to its zero byte."""
    return value.split(b"\0", 1)[0].decode(errors="replace")


def _number(form: struct.Struct, names: Mapping[int, str]) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    if not names:
        return form.pack, lambda raw: form.unpack_from(raw)[0]
    numbers = {name: number for number, name in names.items()}

    def read(raw: bytes) -> Any:
        number = form.unpack_from(raw)[0]
        return names.get(number, number)

    return lambda value: form.pack(numbers[value] if isinstance(value, str) else value), read


def _encoded_by(form: Any, value: Any) -> bytes:
    body = bytearray()
    form.encode_into(body, 0, value)
    return bytes(body)
