"""What the ledger is told of who writes it."""

from __future__ import annotations

import importlib.metadata


def version() -> str:
    """Return the installed version of Plumbline."""
    try:
        return importlib.metadata.version("plumbline")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"
