"""Every function that CONTRIBUTING's ways list exists where they say."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.repository import REPOSITORY

LINE = re.compile(r"^\d+\. `(\S+\.py)` `(\S+)`: ", re.MULTILINE)
WAYS = re.findall(
    r"^## (The way of .+?)\n(.+?)(?=^## )", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize(("heading", "section"), WAYS, ids=[heading for heading, _ in WAYS])
def test_listed_functions_exist(heading: str, section: str) -> None:
    listed = LINE.findall(section)
    assert len(listed) >= 5, heading
    for file, function in listed:
        assert function in _functions(ast.parse((REPOSITORY / file).read_text())), f"{heading}: {file} {function}"


def test_the_ways_of_add_del_and_network_status_are_listed() -> None:
    assert [heading for heading, _ in WAYS] == [
        "The way of an ADD",
        "The way of a DEL",
        "The way of a network-status",
    ]


def _functions(tree: ast.AST, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            found |= _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(prefix + node.name)
    return found
