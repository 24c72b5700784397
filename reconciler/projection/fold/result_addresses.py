"""Read the addresses in a plugin's result, and nothing else: this runs for every attachment."""

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
    """An IP address in canonical form and its prefix length."""

    address: str
    length: int

    def __str__(self) -> str:
        return f"{self.address}/{self.length}"


@lru_cache(maxsize=1024)
def addresses_of(result: str, cni_version: str) -> tuple[PrefixedAddress, ...]:
    """Return the addresses in *result*, a plugin's JSON text; none if the text can't be read.

    The fold keeps the original text, and the publication of the status reports the error.
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
