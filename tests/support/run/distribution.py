"""Which process of a parallel run gets which tests, and in which order."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.support.repository import REPOSITORY

_FIRST = "test_shim_build.py"
"""Takes longest without a break: it runs a cross compiler for the first time."""
_STAGES = ("e2e", "integration", "unit")
_TESTS = REPOSITORY / "tests"


class Distribution(LoadFileScheduling):
    """Gives a file to one process, and all files that need the shared API server to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "API server" if _needs_api_server(file) else file


@functools.cache
def _needs_api_server(file: str) -> bool:
    """Return whether tests of *file* use the fixture ``kube``, which starts a kube-apiserver in their process."""
    path = REPOSITORY / file
    return path.is_relative_to(_TESTS / "integration") and "KubeServer" in path.read_text()


def order(item: pytest.Item) -> tuple[bool, int]:
    """Return the rank of *item*: long files come first, so that short ones fill the end of a parallel run."""
    return item.path.name != _FIRST, _stage(item.path)


def _stage(path: Path) -> int:
    stage = path.relative_to(_TESTS).parts[0] if path.is_relative_to(_TESTS) else ""
    return _STAGES.index(stage) if stage in _STAGES else len(_STAGES)
