"""Entry points compiled once for all tests."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from shim_harness import Runtime

from nodeworker import shim
from nodeworker.shim import build


@pytest.fixture(scope="session")
def shipped_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program as it is shipped."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed: the entry point cannot be compiled")
    out = tmp_path_factory.mktemp("shim") / "plumbline"
    build.build(shim.architecture(), out)
    return out


@pytest.fixture(scope="session")
def sanitized_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with gcc's address and undefined-behaviour sanitizers."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: the entry point cannot be compiled with sanitizers")
    out = tmp_path_factory.mktemp("shim") / "plumbline-sanitized"
    build.build_sanitized(out)
    return out


@pytest.fixture
def runtime(shipped_binary: Path, tmp_path: Path) -> Runtime:
    return Runtime(shipped_binary, tmp_path)
