"""Identifiers and times in the form of the envelope."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from events.schema.parts import (
    EventId,
)


def new_event_id(unix_ms: int, entropy: bytes) -> EventId:
    """Return a UUIDv7 (RFC 9562, section 5.7) for *unix_ms* with ten bytes of *entropy*."""
    value = (unix_ms & (2**48 - 1)) << 80 | int.from_bytes(entropy[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return EventId(str(uuid.UUID(int=value)))


def rfc3339(unix_ns: int) -> str:
    """Return *unix_ns*, nanoseconds since 1970, as RFC 3339 text in UTC."""
    seconds, fraction = divmod(unix_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:19]}.{fraction:09d}Z"


def unix_ns(text: str) -> int:
    """Return nanoseconds since 1970 for an RFC 3339 text in UTC, with up to nine decimals. Raises ValueError."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 1_000_000_000 + int((fraction + "000000000")[:9])
