"""Compile the CNI entry point for any node architecture, with the compiler of the Python package ziglang.

Standard library only: the wheel's build hook runs it before Plumbline's dependencies are installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nodeworker import shim

SOURCE = Path(__file__).with_name("plumbline.c")

_STRICT = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
_TARGETS = {"amd64": "x86_64-linux-musl", "arm64": "aarch64-linux-musl"}


def build(architecture: str, out: Path) -> None:
    """Write the static, stripped entry point for *architecture* to *out*. Raises subprocess.CalledProcessError."""
    _compile(
        [sys.executable, "-m", "ziglang", "cc", "-target", _TARGETS[architecture], *_STRICT, "-static", "-Os", "-s"],
        out,
    )


def build_sanitized(out: Path) -> None:
    """Write an entry point for this machine to *out* that aborts with a report on undefined behaviour; for tests.

    Raises subprocess.CalledProcessError, or FileNotFoundError without gcc.
    """
    _compile(["gcc", *_STRICT, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], out)


def _compile(command: Sequence[str], out: Path) -> None:
    # Rename into place: a runtime may be executing the old file, and two builds may run at once.
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        subprocess.run([*command, "-o", str(draft), str(SOURCE)], check=True)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build from the command line."""
    parser = argparse.ArgumentParser(prog="python -m nodeworker.shim.build", description=__doc__)
    parser.add_argument("--arch", choices=_TARGETS, default=shim.architecture(), help="default: this machine's")
    parser.add_argument("--out", type=Path, help="default: plumbline-<arch>, beside the source")
    parser.add_argument("--sanitize", action="store_true", help="for this machine, with gcc's sanitizers")
    options = parser.parse_args(arguments)
    if options.sanitize:
        build_sanitized(options.out or shim.path("sanitized"))
    else:
        build(options.arch, options.out or shim.path(options.arch))


if __name__ == "__main__":
    main()
