"""Decide what is done about a network-status that somebody changed, where a pod's networks have different policies.

Pure. The annotation is one text, written as a whole, and each of its elements is about one network. So what counts is
which elements differ: a change is brought back if one of their networks is to be repaired, else said if one is to be
observed, else nobody's business. What can't be told apart by network concerns all networks that the pod has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

_STRENGTH = ("off", "observe", "repair")


def verdict(wanted: str, found: str | None, policy: Callable[[str], str]) -> str:
    """Return the policy, as of ``DriftSettings``, for a pod that has the text *found* in the place of *wanted*.

    *policy* tells that of each network.
    """
    return max((policy(network) for network in concerned(wanted, found)), key=_STRENGTH.index, default="off")


def concerned(wanted: str, found: str | None) -> frozenset[str]:
    """Return those of the networks in *wanted* that *found* tells something else of: all, if that can't be said.

    It can't where the text is gone or is no list of elements, and where it differs in its form, its order or in
    elements of other networks alone.
    """
    right, seen = _by_network(wanted) or {}, _by_network(found)
    if seen is None:
        return frozenset(right)
    return frozenset(network for network in right if seen.get(network) != right[network]) or frozenset(right)


def _by_network(text: str | None) -> Mapping[str, list[Any]] | None:
    """Return the elements of *text* by the network that they name; None: it has no such form."""
    try:
        listed = msgspec.json.decode((text or "").encode(errors="replace"))
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(listed, list):
        return None
    found: dict[str, list[Any]] = {}
    for element in cast("list[Any]", listed):
        name = cast("dict[str, Any]", element).get("name") if isinstance(element, dict) else None
        if not isinstance(name, str):
            return None
        found.setdefault(name, []).append(element)
    return found
