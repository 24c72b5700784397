"""The CNI entry point, the program that the runtime executes: small and static, so a request costs a millisecond.

``plumbline.c`` is the program, ``frame`` the worker's side of its wire format, ``build`` the compilation.
"""

from __future__ import annotations

import platform
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""The architectures that we build for: the kernel's name, and Kubernetes' name."""


def architecture() -> str:
    """Return this machine's architecture in Kubernetes' words. Raises RuntimeError if we do not build for it."""
    machine = platform.machine()
    try:
        return ARCHITECTURES[machine]
    except KeyError:
        raise RuntimeError(
            f"there is no plumbline entry point for {machine}, only for {', '.join(ARCHITECTURES)}"
        ) from None


def path(architecture: str) -> Path:
    """Return the path of the entry point for *architecture*, whether it is built or not."""
    return Path(__file__).with_name(f"plumbline-{architecture}")


def binary() -> Path:
    """Return the entry point for this machine. Raises FileNotFoundError that says how to build it."""
    file = path(architecture())
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not built; run: python -m nodeworker.shim.build")
    return file
