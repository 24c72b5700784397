from __future__ import annotations

from pathlib import Path

import pytest
from install_harness import Host


@pytest.fixture
def host(tmp_path: Path, entry_point: Path) -> Host:
    return Host(tmp_path, entry_point)
