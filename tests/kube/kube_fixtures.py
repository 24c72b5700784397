"""The fixture for whoever tests against a real API server: import it into the folder's ``conftest.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kube.kube_server import KubeServer


@pytest.fixture(scope="session")
def kube() -> Iterator[KubeServer]:
    """A kube-apiserver for the whole run. Whoever kills it starts it again."""
    server = KubeServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()
