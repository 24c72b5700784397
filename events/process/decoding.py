"""Convert decoded values to Struct types, on any thread.

msgspec (0.22) analyses a type at its first use, and the process crashes if a second thread uses the type meanwhile. A
decoder at module level does that at import; for ``msgspec.convert`` this module does it under a lock.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_analysed: set[Any] = set()
_lock = threading.Lock()


def convert(value: Any, kind: type[T]) -> T:
    """Return *value* as a *kind*. Raises msgspec.ValidationError."""
    if kind not in _analysed:
        with _lock:
            msgspec.json.Decoder(kind)
            _analysed.add(kind)
    return msgspec.convert(value, kind)
