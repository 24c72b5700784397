from __future__ import annotations

from tests.kube.kube_fixtures import kube

__all__ = ["kube"]
