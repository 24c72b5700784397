"""The networks that a changed status concerns, and the resulting policy."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.status.guard.policy import concerned, verdict

A, B, C = ({"name": name, "interface": name, "ips": ["10.0.0.1"], "dns": {}} for name in ("a", "ns/b", "ns/c"))
ALL = {"a", "ns/b", "ns/c"}
POLICIES = {"a": "repair", "ns/b": "observe", "ns/c": "off"}


def text(*elements: object, indent: int = 4) -> str:
    return json.dumps(elements, indent=indent)


RIGHT = text(A, B, C)


@pytest.mark.parametrize(
    ("found", "networks"),
    [
        (None, ALL),
        ("", ALL),
        ("[", ALL),
        ("{}", ALL),
        ("[1]", ALL),
        ("[" * 100_000, ALL),
        ('[{"name": 7}]', ALL),
        ("\ud800", ALL),
        ("[]", ALL),
        (text(A, B), {"ns/c"}),
        (text(A, B | {"ips": []}, C), {"ns/b"}),
        (text(A | {"more": 1}, B, C | {"mac": "02:00:00:00:00:01"}), {"a", "ns/c"}),
        (text(A, A, B, C), {"a"}),
        (text(A, B | {"name": "ns/other"}, C), {"ns/b"}),
        (text(A, B, C, {"name": "forged"}), ALL),
        (text(C, B, A), ALL),
        (text(A, B, C, indent=1), ALL),
    ],
)
def test_the_networks_are_those_whose_elements_differ(found: str | None, networks: set[str]) -> None:
    assert concerned(RIGHT, found) == networks


@given(st.lists(st.sampled_from([A, B, C, {"name": "forged"}]), max_size=5), st.sets(st.sampled_from(sorted(ALL))))
def test_one_changed_network_with_repair_suffices(elements: list[object], repaired: set[str]) -> None:
    found = text(*elements)
    assert verdict(RIGHT, found, lambda _: "off") == "off"
    expected = "repair" if repaired & concerned(RIGHT, found) else "observe"
    assert verdict(RIGHT, found, lambda network: "repair" if network in repaired else "observe") == expected


@pytest.mark.parametrize(
    ("found", "policy"),
    [(None, "repair"), (text(A, C), "observe"), (text(A, B), "off"), (text(A), "observe"), (text(B, C), "repair")],
)
def test_the_strongest_policy_decides(found: str | None, policy: str) -> None:
    assert verdict(RIGHT, found, POLICIES.__getitem__) == policy
