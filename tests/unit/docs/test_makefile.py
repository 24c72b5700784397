"""The Makefile's inner loop leaves out what it means to leave out."""

from __future__ import annotations

import re

from tests.support.repository import REPOSITORY


def test_each_word_of_the_inner_loops_filter_is_in_the_name_of_a_test() -> None:
    (expression,) = re.findall(r'-k "unit or not \((.*)\)"', (REPOSITORY / "Makefile").read_text())
    names = "\n".join(
        line
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for line in path.read_text().splitlines()
        if "def test_" in line
    )
    assert [word for word in expression.split(" or ") if word not in names] == []
