"""Entry points compiled once for all tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nodeworker.shim import build
from tests.support.worker.shim_harness import Runtime


@pytest.fixture(scope="session")
def sanitized_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with gcc's address and undefined-behaviour sanitizers."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: the entry point cannot be compiled with sanitizers")
    out = tmp_path_factory.mktemp("shim") / "plumbline-sanitized"
    build.build_sanitized(out)
    return out


@pytest.fixture
def runtime(entry_point: Path, tmp_path: Path) -> Runtime:
    return Runtime(entry_point, tmp_path)
