from __future__ import annotations

from tests.support.host.multus_state import multus

__all__ = ["multus"]
