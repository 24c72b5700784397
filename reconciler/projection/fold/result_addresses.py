"""Which addresses a plugin's result has, fast: of every attachment they are asked, and of nothing else in it."""

from __future__ import annotations

import socket
from functools import lru_cache
from typing import NamedTuple

import msgspec


class _Ip(msgspec.Struct):
    address: str


class _Family(msgspec.Struct):
    ip: str


class _Wire(msgspec.Struct, rename={"cni_version": "cniVersion"}):
    cni_version: str | None = None
    ips: list[_Ip] | None = None
    ip4: _Family | None = None
    ip6: _Family | None = None


_decoder = msgspec.json.Decoder(_Wire)


class PrefixedAddress(NamedTuple):
    """An IP address in canonical form, and how much of it is its network."""

    address: str
    length: int

    def __str__(self) -> str:
        return f"{self.address}/{self.length}"


@lru_cache(maxsize=1024)
def addresses_of(result: str, cni_version: str) -> tuple[PrefixedAddress, ...]:
    """Return the addresses in *result*, the text of a plugin; none where that can't be read.

    The recorded text itself stays in the fold, and whoever publishes it complains.
    """
    if not result:
        return ()
    try:
        wire = _decoder.decode(result)
    except (msgspec.MsgspecError, RecursionError):
        return ()
    if (wire.cni_version or cni_version or "0.1.0") < "0.3":
        texts = [family.ip for family in (wire.ip4, wire.ip6) if family is not None]
    else:
        texts = [ip.address for ip in wire.ips or ()]
    return tuple(found for text in texts if (found := _canonical(text)) is not None)


def _canonical(text: str) -> PrefixedAddress | None:
    bare, _, length = text.partition("/")
    family, bits = (socket.AF_INET6, 128) if ":" in bare else (socket.AF_INET, 32)
    try:
        address = socket.inet_ntop(family, socket.inet_pton(family, bare))
        return PrefixedAddress(address, min(int(length), bits) if length else bits)
    except (OSError, ValueError):
        return None
