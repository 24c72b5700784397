"""Lift stored events of older versions to the version that the code reads.

The ledger is never rewritten. So each released version has a chain of pure functions to the current one, one function
for each step, on the decoded ``data``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Step: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]

STEPS: Mapping[tuple[str, int], Step] = {}
"""(type, version) -> the step to the next version. So far every type is at version 1."""

CURRENT: Mapping[str, int] = {name: version + 1 for name, version in sorted(STEPS)}
"""The current version of each type that has had more than one."""


def lift(
    name: str, version: int, data: dict[str, Any], steps: Mapping[tuple[str, int], Step] = STEPS
) -> dict[str, Any]:
    """Return *data* of type *name* at *version* as the newest version that *steps* lead to."""
    while (step := steps.get((name, version))) is not None:
        data = step(data)
        version += 1
    return data
