"""The demo runs without root and without a plugin's binary."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys

import pytest

from nodeworker import shim
from tests.support.repository import REPOSITORY

PATIENCE = 180
"""Seconds for a demo on a busy machine."""

_AS_SOMEBODY = ("unshare", "--user", "--map-user=1000", "--map-group=1000") if os.geteuid() == 0 else ()
"""What makes root an ordinary user to himself: another number, and no capability on the machine."""


@functools.cache
def allowed() -> str:
    """Return why only root can create a network namespace on this kernel, or an empty text."""
    if not shutil.which("unshare"):
        return "util-linux is not installed"
    words = [*_AS_SOMEBODY, "unshare", "--user", "--map-root-user", "--net", "--mount", "true"]
    ran = subprocess.run(words, check=False, capture_output=True, text=True)
    return f"the kernel has no user namespaces for users: {ran.stderr.strip()}" if ran.returncode else ""


@pytest.mark.skipif(bool(allowed()), reason=allowed())
@pytest.mark.skipif(
    not shim.path(shim.architecture()).exists(), reason="the entry point is not built: python -m nodeworker.shim.build"
)
def test_demo_needs_neither_root_nor_a_plugin() -> None:
    who = subprocess.run([*_AS_SOMEBODY, "id", "-u"], check=True, capture_output=True, text=True).stdout.strip()
    assert who != "0"
    played = subprocess.run(
        [*_AS_SOMEBODY, sys.executable, str(REPOSITORY / "deploy/demo/demo.py")],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "CNI_PATH": "/var/empty", "LC_ALL": "C.UTF-8"},
    )
    assert played.returncode == 0, played.stdout[-3000:] + played.stderr[-3000:]
