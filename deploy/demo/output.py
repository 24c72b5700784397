"""What the demo prints: headings, commands with their output, and the error that ends it."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
import time
from pathlib import Path

_INDENT = "   "
_WIDEST = 110
"""Columns of a line that is easy to read."""
_TIMEOUT = 20.0


class DemoFailedError(Exception):
    """A step did not end as the demo says."""


def print_step(title: str, text: str) -> None:
    """Print a heading, and what a newcomer needs to know."""
    lines = textwrap.wrap(" ".join(text.split()), min(_width(), _WIDEST))
    print(f"\n\033[1m── {title}\033[0m", *lines, sep=f"\n{_INDENT}", flush=True)


def print_indented(text: str) -> None:
    """Print the output of a program; a line that is wider than the terminal goes on with a deeper indent."""
    for line in text.splitlines():
        print(*(f"{_INDENT}{part}" for part in _wrapped(line)), sep="\n", flush=True)


def print_command(line: str) -> None:
    """Print a command that the demo is about to run."""
    print()
    print_indented(f"$ {line}")


def run(*argv: str, shown: str = "") -> None:
    """Run a command and print it, or *shown*, with its output. Raises DemoFailedError when it fails."""
    print_command(shown or " ".join(argv))
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    print_indented(done.stdout + done.stderr)
    expect(done.returncode == 0, f"{' '.join(argv)} ended with exit code {done.returncode}")


def run_silently(*argv: str) -> str:
    """Run a command without printing it and return its output. Raises DemoFailedError when it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def expect(condition: object, otherwise: str) -> None:
    """Raise DemoFailedError unless *condition* holds."""
    if not condition:
        raise DemoFailedError(otherwise)


def wait_for(path: Path) -> None:
    """Return when *path* exists. Raises DemoFailedError after 20 seconds."""
    until = time.monotonic() + _TIMEOUT
    while not path.exists():
        expect(time.monotonic() < until, f"{path} did not appear within {_TIMEOUT:.0f} s")
        time.sleep(0.02)


def _width() -> int:
    return shutil.get_terminal_size(fallback=(_WIDEST, 24)).columns - len(_INDENT) - 1


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(
        line, _width(), subsequent_indent=" " * 6, replace_whitespace=False, break_on_hyphens=False
    ) or [""]
