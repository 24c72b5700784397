"""What the audience sees: headings, commands with their output, and the end when something is not as it was told."""

from __future__ import annotations

import subprocess
import textwrap
import time
from pathlib import Path

_PATIENCE = 20.0


class DemoFailedError(Exception):
    """Something did not turn out as the demo says."""


def say(title: str, text: str) -> None:
    """Print a heading, and what a newcomer needs to know."""
    lines = textwrap.wrap(" ".join(text.split()), 110)
    print(f"\n\033[1m── {title}\033[0m", *lines, sep="\n   ", flush=True)


def quote(text: str) -> None:
    """Print what somebody else has said."""
    print(*(f"   {line}" for line in text.splitlines()), sep="\n", flush=True)


def type_in(line: str) -> None:
    """Print a command that is about to be run."""
    print(f"\n   $ {line}", flush=True)


def show(*argv: str) -> None:
    """Run a command, print it and what it prints. Raises DemoFailedError when it fails."""
    type_in(" ".join(argv))
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    quote(done.stdout + done.stderr)
    expect(done.returncode == 0, f"{' '.join(argv)} ended with exit code {done.returncode}")


def quiet(*argv: str) -> str:
    """Run a command that is no part of the story; return what it prints. Raises DemoFailedError when it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def expect(truth: object, otherwise: str) -> None:
    """Raise DemoFailedError unless *truth*."""
    if not truth:
        raise DemoFailedError(otherwise)


def wait_for(path: Path) -> None:
    """Return when *path* is there. Raises DemoFailedError when it does not come."""
    until = time.monotonic() + _PATIENCE
    while not path.exists():
        expect(time.monotonic() < until, f"{path} did not appear within {_PATIENCE:.0f} s")
        time.sleep(0.02)
