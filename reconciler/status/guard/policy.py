"""Decide how to treat a foreign change of a network-status if the pod's networks have different policies.

Pure. The annotation is one text with one element per network. The changed elements decide: if the policy of one of
their networks is ``repair``, the status is restored; else if one is ``observe``, the change is recorded; else it is
ignored. A change that belongs to no single network concerns all networks of the pod.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

_STRENGTH = ("off", "observe", "repair")


def verdict(wanted: str, found: str | None, policy: Callable[[str], str]) -> str:
    """Return the strongest policy (of ``DriftSettings``) for a pod with the text *found* instead of *wanted*.

    *policy* returns the policy of a network.
    """
    return max((policy(network) for network in concerned(wanted, found)), key=_STRENGTH.index, default="off")


def concerned(wanted: str, found: str | None) -> frozenset[str]:
    """Return the networks of *wanted* whose elements differ in *found*; all if that is unclear.

    Unclear: the text is missing or not a list of elements, or it differs only in format, order, or elements of other
    networks.
    """
    right, seen = _by_network(wanted) or {}, _by_network(found)
    if seen is None:
        return frozenset(right)
    return frozenset(network for network in right if seen.get(network) != right[network]) or frozenset(right)


def _by_network(text: str | None) -> Mapping[str, list[Any]] | None:
    """Return the elements of *text* by network; None if it has another format."""
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
