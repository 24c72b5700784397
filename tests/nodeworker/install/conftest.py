from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from install_harness import Host

from nodeworker import shim
from nodeworker.shim import build


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The entry point as it is shipped."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed: the entry point cannot be compiled")
    out = tmp_path_factory.mktemp("shim") / "plumbline"
    build.build(shim.architecture(), out)
    return out


@pytest.fixture
def host(tmp_path: Path, binary: Path) -> Host:
    return Host(tmp_path, binary)
