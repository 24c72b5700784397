"""Hide a package during an import of another that would load it only because it is installed.

Every node pays for the worker's memory. nats-py loads aiohttp for WebSockets, structlog loads rich for tracebacks.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def hidden(package: str) -> Generator[None]:
    """Make an import of *package* fail inside the block, unless it is loaded already. Later it can be imported."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # makes its import fail
    try:
        yield
    finally:
        del sys.modules[package]
