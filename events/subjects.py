"""Map events to NATS subjects and back, without loss.

Node names and container IDs may contain dots, which separate tokens in a subject, and NATS forbids blanks and
wildcards. Such bytes become ``=XX``, as in quoted-printable text, and so does ``=`` itself. So no two names have the
same token.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Only this error handler gives each text, surrogates included, its own token.
_UTF8 = ("utf-8", "surrogatepass")
ROOT = "plumbline.ev"
COMMAND_ROOT = "plumbline.cmd"
DOWN_ROOT = "plumbline.down"
"""Messages down to a node: the server announces stored commands, the reconciler announces statuses."""
_NONE = "-"
_UNSAFE = re.compile(rb"[^A-Za-z0-9_\-]")
_ESCAPED = re.compile(r"=([0-9A-F]{2})")


def token(name: str) -> str:
    """Return *name* as one subject token. Raises ValueError when it is empty."""
    if not name:
        raise ValueError("a subject token can't be empty")
    if name == _NONE:
        return "=2D"
    return _UNSAFE.sub(lambda match: b"=%02X" % match[0][0], name.encode(*_UTF8)).decode("ascii")


def name_of(text: str) -> str:
    """Return the name whose token is *text*. Raises ValueError."""
    raw = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text).encode("latin-1")
    return raw.decode(*_UTF8)


def subject(node: str, sandbox: str, event_type: str) -> str:
    """Return the subject of an event. *sandbox* is empty for events of a node, *node* for those of the reconciler."""
    return f"{ROOT}.{_part(node)}.{_part(sandbox)}.{_type(event_type)}"


def command(node: str, event_type: str) -> str:
    """Return the subject of a command for *node*."""
    return f"{COMMAND_ROOT}.{_part(node)}.{token(event_type)}"


def command_pattern(node: str) -> str:
    """Return the subject filter for all commands for *node*."""
    return f"{COMMAND_ROOT}.{_part(node)}.>"


def down(node: str, event_type: str) -> str:
    """Return the subject that announces to *node* an event that another process recorded."""
    return f"{DOWN_ROOT}.{_part(node)}.{token(event_type)}"


def down_pattern(node: str) -> str:
    """Return the subject filter for all announcements to *node*."""
    return f"{DOWN_ROOT}.{_part(node)}.>"


def pattern(node: str | None = None, sandbox: str | None = None, event_type: str | None = None) -> str:
    """Return the subject filter for all events with the given parts; None matches any."""
    parts = [
        "*" if node is None else _part(node),
        "*" if sandbox is None else _part(sandbox),
        "*" if event_type is None else token(event_type),
    ]
    return ".".join((ROOT, *parts))


def matches(subject: str, pattern: str) -> bool:
    """Return whether NATS delivers *subject* to a subscription on *pattern*."""
    filters, tokens = pattern.split("."), subject.split(".")
    for index, part in enumerate(filters):
        if part == ">":
            return len(tokens) > index
        if index >= len(tokens) or part not in ("*", tokens[index]):
            return False
    return len(filters) == len(tokens)


def parse(text: str) -> tuple[str, str, str]:
    """Return (node, sandbox, event type) of a subject made by ``subject``. Raises ValueError."""
    parts = text.split(".")
    if len(parts) != 5 or ".".join(parts[:2]) != ROOT:
        raise ValueError(f"{text!r} is not the subject of an event")
    node, sandbox, event_type = parts[2:]
    return _part_of(node), _part_of(sandbox), name_of(event_type)


@lru_cache(1024)  # readers compute the subject of each event
def _part(name: str) -> str:
    return token(name) if name else _NONE


_type = lru_cache(1024)(token)


def _part_of(text: str) -> str:
    return "" if text == _NONE else name_of(text)
