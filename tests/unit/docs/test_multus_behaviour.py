"""Every line of ``docs/reference/multus-behaviour.md`` is complete and names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import NamedTuple

import pytest

from tests.support.repository import REPOSITORY

PAGE = (REPOSITORY / "docs/reference/multus-behaviour.md").read_text()

VERDICTS = {"same", "stricter", "different", "does not apply"}
STATUSES = {"done", "partly", "not yet"}


class Row(NamedTuple):
    """A numbered line of one of the tables."""

    number: int
    what: str
    verdict: str
    why: str
    held_by: str


def rows(heading: str) -> list[Row]:
    """Return the numbered lines of all tables whose first row of headings begins with *heading*."""
    found: list[Row] = []
    inside = False
    for line in PAGE.splitlines():
        if line.startswith("| # |"):
            inside = line.startswith(f"| # | {heading} ")
        elif inside and re.match(r"\| \d+ \|", line):
            number, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.append(Row(int(number), *cells))
    return found


LINES = rows("what Multus is held to")
PAINS = rows("pain")
NAMED = re.findall(r"`(tests/[^`]+\.py)::([^`]+)`", PAGE)


@cache
def defined_in(path: str) -> frozenset[str]:
    """Return the names of the tests that pytest collects from the file *path*."""
    module = ast.parse((REPOSITORY / path).read_text())
    functions = (node for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(function.name for function in functions if function.name.startswith("test_"))


def test_every_line_is_there_once_and_in_order() -> None:
    assert [row.number for row in LINES] == list(range(1, 111))
    assert [row.number for row in PAINS] == list(range(1, 26))


@pytest.mark.parametrize("row", LINES, ids=lambda row: f"line-{row.number}")
def test_a_line_has_a_verdict_and_a_test_or_a_reason(row: Row) -> None:
    assert row.what
    assert row.verdict in VERDICTS
    assert row.why or row.verdict == "same"
    assert row.held_by or row.why
    assert row.held_by or row.verdict == "does not apply"


@pytest.mark.parametrize("row", PAINS, ids=lambda row: f"pain-{row.number}")
def test_each_pain_has_a_status_and_each_done_one_a_test(row: Row) -> None:
    assert row.what
    assert row.verdict in STATUSES
    assert row.why
    assert row.held_by or row.verdict != "done"
    assert ("Missing: " in row.why) is (row.verdict == "partly")


@pytest.mark.parametrize("row", [*LINES, *PAINS], ids=lambda row: f"{row.number}-{row.what[:20]}")
def test_the_test_of_a_line_has_its_pytest_name(row: Row) -> None:
    for each in filter(None, row.held_by.split("<br>")):
        assert re.fullmatch(r"`tests/[a-z0-9_/]+/test_[a-z0-9_]+\.py::test_[a-z0-9_]+`", each)


def test_every_test_that_is_named_exists() -> None:
    assert len(NAMED) > 110
    missing = [f"{path}::{name}" for path, name in NAMED if name not in defined_in(path)]
    assert not missing
