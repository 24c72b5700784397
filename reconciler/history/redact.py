"""Remove secrets from output for people: events contain configurations, and those contain passwords.

Pure. A key that looks like a secret's name loses its value, in the event and at any depth of every JSON text inside it.
In other text, what follows such a key and ``=`` or ``:`` is removed.
"""

from __future__ import annotations

import re
from typing import Any, cast

import msgspec

from events.schema import Event, encode

REDACTED = "(redacted)"

_SECRET = r"(?:token|passw|secret|key|credential)"  # noqa: S105  # a pattern, not a secret
_KEY = re.compile(_SECRET, re.IGNORECASE)
_IN_TEXT = re.compile(
    rf"""([\w.-]*{_SECRET}[\w.-]*\\*["']?\s*[=:]\s*)(\\*"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s;,&]+)""", re.IGNORECASE
)


def redacted(event: Event) -> bytes:
    """Return the JSON text of *event* without secrets."""
    return msgspec.json.encode(_value(msgspec.json.decode(encode(event))))


def without_secrets(text: str) -> str:
    """Return *text*, which is not JSON, without the values of keys that look like a secret's name."""
    return _IN_TEXT.sub(rf"\1{REDACTED}", text)


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {key: REDACTED if _is_secret(key, member) else _value(member) for key, member in members.items()}
    if isinstance(value, list):
        return [_value(member) for member in cast("list[Any]", value)]
    return _text(value) if isinstance(value, str) else value


def _is_secret(key: str, value: Any) -> bool:
    return not isinstance(value, bool) and value not in (None, "") and _KEY.search(key) is not None


def _text(text: str) -> str:
    if not text.lstrip().startswith(("{", "[", '"')):
        return without_secrets(text)
    try:
        return msgspec.json.encode(_value(msgspec.json.decode(text))).decode()
    except msgspec.MsgspecError:
        return without_secrets(text)
    except RecursionError:
        return REDACTED
