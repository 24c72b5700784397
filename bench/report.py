"""The report of a measurement, in the same form for every benchmark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal


def report(
    bench: str, value: float, unit: str, target: float | None = None, *, better: Literal["less", "more"] = "less"
) -> None:
    """Print one measurement; *target* None: it has none, it explains another."""
    holds = None if target is None else (value <= target if better == "less" else value >= target)
    line = {"bench": bench, "value": round(value, 3), "unit": unit, "target": target, "holds": holds}
    print(json.dumps(line), flush=True)


def quantile(values: Sequence[float], q: float) -> float:
    """Return the *q* quantile of *values*, by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
