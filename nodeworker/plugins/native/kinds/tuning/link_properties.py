"""The properties of an interface that tuning changes, and a note on disk of their earlier values.

The note has the reference plugin's format, so each plugin can undo what the other changed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import msgspec
from msgspec.structs import asdict

from nodeworker.kernel.layouts import ifinfmsg
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.message import Request


class Properties(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Current or requested properties of an interface; None: not stated."""

    mac: str = ""
    promisc: bool | None = None
    mtu: int = 0
    allmulti: bool | None = None
    tx_queue: int | None = msgspec.field(default=None, name="txQLen")
    """Length of the transmission queue, in packets."""


NOTHING = Properties()

_decoder = msgspec.json.Decoder(Properties)


def current(link: Link, like: Properties) -> Properties:
    """Return the current values of the properties that *like* states."""
    return Properties(
        mac=link.mac if like.mac else "",
        promisc=None if like.promisc is None else link.promiscuous,
        mtu=link.mtu if like.mtu else 0,
        allmulti=None if like.allmulti is None else bool(link.flags & ifinfmsg.IFF_ALLMULTI),
        tx_queue=None if like.tx_queue is None else link.queue_length,
    )


def changes(index: int, wanted: Properties) -> Iterator[tuple[str, Request]]:
    """Yield a description of each change of the interface *index*, and its request."""
    if wanted.mac:
        yield f"MAC address {wanted.mac}", links.change(index, mac=wanted.mac)
    if wanted.promisc is not None:
        yield f"promiscuous mode {_switch(wanted.promisc)}", links.change(index, promiscuous=wanted.promisc)
    if wanted.mtu:
        yield f"MTU {wanted.mtu}", links.change(index, mtu=wanted.mtu)
    if wanted.allmulti is not None:
        yield f"all-multicast mode {_switch(wanted.allmulti)}", links.change(index, allmulti=wanted.allmulti)
    if wanted.tx_queue is not None:
        yield f"transmission queue {wanted.tx_queue}", links.change(index, queue_length=wanted.tx_queue)


def differing(there: Properties, wanted: Properties) -> str:
    """Return a description of each property in *wanted* that differs in *there*."""
    found, asked = asdict(there), asdict(wanted)
    return ", ".join(f"{name} {found[name]} instead of {asked[name]}" for name in asked if found[name] != asked[name])


def noted(path: str) -> Properties:
    """Return the note at *path*; an empty one if it is missing or malformed. Raises OSError."""
    try:
        with open(path, "rb") as file:
            return _decoder.decode(file.read())
    except (FileNotFoundError, msgspec.DecodeError, UnicodeError):
        return NOTHING


def note(path: str, found: Properties) -> None:
    """Note *found* at *path*, except for properties noted there already: those are the values before the first change.

    Raises OSError.
    """
    before, unstated = noted(path), asdict(NOTHING)
    together = Properties(**(asdict(found) | {k: v for k, v in asdict(before).items() if v != unstated[k]}))
    if together == before:
        return
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    unfinished = _unfinished(path)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(msgspec.json.encode(together))
    os.rename(unfinished, path)


def forget(path: str) -> None:
    """Delete the note at *path*; a missing one is no error. Raises OSError."""
    for each in (path, _unfinished(path)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(each)


def _unfinished(path: str) -> str:
    return f"{path}.new"


def _switch(on: bool) -> str:
    return "on" if on else "off"
