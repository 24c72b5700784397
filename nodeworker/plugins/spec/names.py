"""The syntax of names, for annotations, plans and manifests.

People write them by hand, so a rule says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

IFNAME_BYTES = 15
"""Linux keeps interface names in 16 bytes with a closing NUL (IFNAMSIZ)."""

_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_LABEL.pattern}(?:\.{_LABEL.pattern})*")
_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_RESERVED_IFNAMES = frozenset({".", "..", "all", "default"})
"""Folders, those of the file system and two of ``/proc/sys/net/ipv4/conf``: the kernel makes no link of that name."""
_SHOWN = 64

T = TypeVar("T")
P = TypeVar("P")


def shown(text: str) -> str:
    """Return *text* in quotes for an error message: one line, printable, at most 64 characters of it."""
    short = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    quoted = short.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in quoted) + '"'


def decode_json(text: str) -> Any:
    """Return the value of the JSON *text*. Raises ValueError."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error


_raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


@contextmanager
def at_place(place: str) -> Generator[None]:
    """Put *place*, such as ``ips[1]``, before the text of a ValueError that is raised inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def each_at(place: str, values: Iterable[T], parse: Callable[[T], P]) -> tuple[P, ...]:
    """Return what *parse* makes of each of *values*. Raises its ValueError, with the place of the value before it."""
    found: list[P] = []
    for index, value in enumerate(values):
        with at_place(f"{place}[{index}]"):
            found.append(parse(value))
    return tuple(found)


def raw_members(text: str | bytes | msgspec.Raw) -> dict[str, msgspec.Raw]:
    """Return the members of the JSON object *text*, each as written. Raises ValueError.

    To decode and encode a value may change how its numbers and strings are written, and a plugin may accept only one
    spelling. Of a key that is there twice, the last one counts, as for Go.
    """
    return _raw_members.decode(text)


def respelled(given: Mapping[str, T], names: Iterable[str]) -> dict[str, T]:
    """Return *given* with its keys spelled as in *names* where only the case differs; an exact spelling counts first.

    Go's decoder, which reads all this for Multus, does not look at the case of a key.
    """
    exact = {name.casefold(): name for name in names}
    folded = {exact.get(key.casefold(), key): value for key, value in given.items()}
    return folded | {key: value for key, value in given.items() if key in folded}


def is_network_name(text: str) -> bool:
    """Whether *text* can name a network, and a folder beside others (CNI specification 1.1, section 1)."""
    return _NETWORK.fullmatch(text) is not None


def is_label(text: str) -> bool:
    """Whether *text* is built like a DNS-1123 label; its length is not checked."""
    return _LABEL.fullmatch(text) is not None


def is_namespace(text: str) -> bool:
    """Whether *text* can name a Kubernetes namespace (DNS-1123 label, at most 63 characters)."""
    return len(text) <= 63 and is_label(text)


def is_object_name(text: str) -> bool:
    """Whether *text* can name a Kubernetes object (DNS-1123 subdomain, at most 253 characters)."""
    return len(text) <= 253 and _SUBDOMAIN.fullmatch(text) is not None


def ifname_problem(name: str) -> str:
    """Return why *name* can't be the name of a network interface, or nothing (CNI specification 1.1, section 2).

    Stricter than the specification in what the kernel would make of it: ``net%d`` becomes some other name there.
    """
    if not name:
        return "is empty"
    if name in _RESERVED_IFNAMES:
        return "is reserved"
    if not all("!" <= c <= "~" and c not in "/:%" for c in name):
        return 'holds whitespace, "/", ":", "%" or a character that is not printable ASCII'
    if len(name) > IFNAME_BYTES:
        return f"is longer than {IFNAME_BYTES} bytes"
    return ""
