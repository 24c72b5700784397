"""Convert what was decoded to Struct types, on any thread.

msgspec (0.22) looks into a type when it is used for the first time, and the process dies when a second thread uses it
before that has ended. A decoder at the level of a module has seen to it at import; for ``convert`` it is done here.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_looked_into: set[Any] = set()
_looking = threading.Lock()


def convert(value: Any, kind: type[T]) -> T:
    """Return *value* as a *kind*. Raises msgspec.ValidationError."""
    if kind not in _looked_into:
        with _looking:
            msgspec.json.Decoder(kind)
            _looked_into.add(kind)
    return msgspec.convert(value, kind)
