"""Every key of Multus is known to the code and documented."""

from __future__ import annotations

import re

import pytest

from nodeworker.planning.resolve.config_keys import OF_CNI, WITHOUT_EFFECT, given_keys, unknown_keys
from nodeworker.planning.resolve.netconf import KEYS
from tests.support.repository import REPOSITORY

PAGE = (REPOSITORY / "docs/reference/multus-configuration.md").read_text()


def documented(heading: str) -> set[str]:
    """Return the keys in the first column of the table under *heading*."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_every_key_that_is_honoured_is_documented_and_no_other() -> None:
    assert documented("Keys that are honoured") == set(KEYS)


def test_every_key_without_effect_is_documented_and_no_other() -> None:
    assert documented("Keys that are accepted without effect") == {
        *WITHOUT_EFFECT,
        *OF_CNI,
        "cni.dev/…",
        "logOptions.compress",
    }


def test_a_key_is_honoured_or_without_effect() -> None:
    assert not set(KEYS) & {*WITHOUT_EFFECT, *OF_CNI}


@pytest.mark.parametrize("key", ["clusternetwork", "KubeConfig", "cni.dev/attachments", "dns"])
def test_known_key_is_known_in_any_case(key: str) -> None:
    assert unknown_keys((key,), KEYS) == ()


def test_null_and_empty_are_absent_and_zero_is_not() -> None:
    given = {"a": None, "b": "", "c": 0, "d": False, "e": [], "BINDIR": "/x"}
    assert given_keys(given, KEYS) == {"c": 0, "d": False, "e": [], "binDir": "/x"}
