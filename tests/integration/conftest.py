"""What tests of several rooms need a real server for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.kube.server import KubeServer


@pytest.fixture(scope="session")
def kube() -> Iterator[KubeServer]:
    """A kube-apiserver for the whole run. A test that kills it starts it again."""
    server = KubeServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()
