"""The messages that the worker exchanges with the kernel, with their header (RFC 3549, section 2.2)."""

from __future__ import annotations

import msgspec

from nodeworker.kernel import wire
from nodeworker.kernel.layouts import nl, nlmsg

HEADER = wire.packed(nlmsg.header)
"""Length, type, flags, sequence number, port."""


class Request(msgspec.Struct, frozen=True):
    """One message to the kernel, without its sequence number."""

    type: int
    flags: int
    """Beside ``NLM_F_REQUEST`` and ``NLM_F_ACK``, which every request has."""
    body: bytes
    ignored: frozenset[int] = frozenset()
    """Error numbers by which the kernel says that the requested state exists already."""


class Answer(msgspec.Struct, frozen=True):
    """One message from the kernel, without its header."""

    type: int
    body: bytes


def packed(request: Request, sequence: int) -> bytes:
    """Return *request* as it goes onto the wire, padded to the next message."""
    length = HEADER.size + len(request.body)
    flags = request.flags | nl.NLM_F_REQUEST | nl.NLM_F_ACK
    return HEADER.pack(length, request.type, flags, sequence, 0) + request.body + b"\0" * (-length % 4)
