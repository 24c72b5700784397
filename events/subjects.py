"""Event <-> NATS subject, without losing a name on the way.

Node names and container IDs may hold dots, which separate tokens in a subject, and NATS forbids blanks and wildcards.
Such bytes are written as ``=XX``, as in quoted-printable text; so is ``=`` itself, which makes the mapping injective.
"""

from __future__ import annotations

import re

# Every text has a token, and no two texts share one: of the ways to write a surrogate only this one is injective.
_UTF8 = ("utf-8", "surrogatepass")
ROOT = "plumbline.ev"
COMMAND_ROOT = "plumbline.cmd"
DOWN_ROOT = "plumbline.down"
"""Where a node is told things: by the server of commands that it has stored, by the reconciler of statuses."""
_NOBODY = "-"
_UNSAFE = re.compile(rb"[^A-Za-z0-9_\-]")
_ESCAPED = re.compile(r"=([0-9A-F]{2})")


def token(name: str) -> str:
    """Return *name* as one subject token. Raises ValueError when it is empty."""
    if not name:
        raise ValueError("a subject token can't be empty")
    if name == _NOBODY:
        return "=2D"
    return _UNSAFE.sub(lambda match: b"=%02X" % match[0][0], name.encode(*_UTF8)).decode("ascii")


def name_of(text: str) -> str:
    """Return the name that ``token`` made *text* from. Raises ValueError."""
    raw = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text).encode("latin-1")
    return raw.decode(*_UTF8)


def subject(node: str, sandbox: str, event_type: str) -> str:
    """Return the subject of an event; empty are the *sandbox* of the node's events and the *node* of nobody's."""
    return f"{ROOT}.{_part(node)}.{_part(sandbox)}.{token(event_type)}"


def command(node: str, event_type: str) -> str:
    """Return the subject of a command for *node*."""
    return f"{COMMAND_ROOT}.{_part(node)}.{token(event_type)}"


def command_pattern(node: str) -> str:
    """Return the subject filter for all commands for *node*."""
    return f"{COMMAND_ROOT}.{_part(node)}.>"


def down(node: str, event_type: str) -> str:
    """Return the subject on which *node* is told of an event that others recorded."""
    return f"{DOWN_ROOT}.{_part(node)}.{token(event_type)}"


def down_pattern(node: str) -> str:
    """Return the subject filter for what the server tells of commands for *node*."""
    return f"{DOWN_ROOT}.{_part(node)}.>"


def pattern(node: str | None = None, sandbox: str | None = None, event_type: str | None = None) -> str:
    """Return the subject filter for all events that have the given parts; None matches any."""
    parts = [
        "*" if node is None else _part(node),
        "*" if sandbox is None else _part(sandbox),
        "*" if event_type is None else token(event_type),
    ]
    return ".".join((ROOT, *parts))


def matches(subject: str, pattern: str) -> bool:
    """Return whether NATS would hand *subject* to a subscription on *pattern*."""
    wanted, got = pattern.split("."), subject.split(".")
    for index, part in enumerate(wanted):
        if part == ">":
            return len(got) > index
        if index >= len(got) or part not in ("*", got[index]):
            return False
    return len(wanted) == len(got)


def parse(text: str) -> tuple[str, str, str]:
    """Return (node, sandbox, event type) of a subject that ``subject`` made. Raises ValueError."""
    parts = text.split(".")
    if len(parts) != 5 or ".".join(parts[:2]) != ROOT:
        raise ValueError(f"{text!r} is not the subject of an event")
    node, sandbox, event_type = parts[2:]
    return _part_of(node), _part_of(sandbox), name_of(event_type)


def _part(name: str) -> str:
    return token(name) if name else _NOBODY


def _part_of(text: str) -> str:
    return "" if text == _NOBODY else name_of(text)
