from __future__ import annotations

from pathlib import Path

import pytest

from tests.nodeworker.adopt.multus_state import MultusNode


@pytest.fixture
def multus(tmp_path: Path) -> MultusNode:
    """A node's folders, empty."""
    return MultusNode(tmp_path)
