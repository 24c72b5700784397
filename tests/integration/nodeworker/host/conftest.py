from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.host.install_harness import Host
from tests.support.host.multus_state import multus

__all__ = ["multus"]


@pytest.fixture
def host(tmp_path: Path, entry_point: Path) -> Host:
    return Host(tmp_path, entry_point)
