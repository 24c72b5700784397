"""The CNI entry point: a small static program, so that a request costs a millisecond and not an interpreter.

``plumbline.c`` is the program, ``frame`` the worker's side of its wire, ``build`` compiles it.
"""

from __future__ import annotations

import platform
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""The kernel's name of each machine we build for, and the name that Kubernetes has for it."""


def architecture() -> str:
    """Return this machine's architecture in Kubernetes' words. Raises RuntimeError for one that we do not build for."""
    machine = platform.machine()
    try:
        return ARCHITECTURES[machine]
    except KeyError:
        raise RuntimeError(
            f"there is no plumbline entry point for {machine}, only for {', '.join(ARCHITECTURES)}"
        ) from None


def path(architecture: str) -> Path:
    """Return where the entry point for *architecture* lies, be it built or not."""
    return Path(__file__).with_name(f"plumbline-{architecture}")


def binary() -> Path:
    """Return the entry point for this machine. Raises FileNotFoundError that says how to build it."""
    file = path(architecture())
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not built; run: python -m nodeworker.shim.build")
    return file
