"""Every function that CONTRIBUTING's ways list exists where they say."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.repository import REPOSITORY

LINE = re.compile(r"^\d+\. (`\S+` `\S+`(?:, `\S+` `\S+`)*): .+", re.MULTILINE)
FUNCTION = re.compile(r"`(\S+)` `(\S+)`")
WAYS = re.findall(
    r"^## (The way of .+?)\n(.+?)(?=^## )", (REPOSITORY / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize(("heading", "section"), WAYS, ids=[heading for heading, _ in WAYS])
def test_listed_functions_exist(heading: str, section: str) -> None:
    lines = LINE.findall(section)
    assert len(lines) == len(re.findall(r"^\d+\.", section, re.MULTILINE)) >= 5, heading
    for file, function in FUNCTION.findall(" ".join(lines)):
        text = (REPOSITORY / file).read_text()
        there = _c_functions(text) if file.endswith(".c") else _functions(ast.parse(text))
        assert function in there, f"{heading}: {file} {function}"


def test_whole_add_is_explained_in_twenty_files() -> None:
    files = {file for file, _ in FUNCTION.findall(" ".join(LINE.findall(dict(WAYS)["The way of an ADD"])))}
    assert len(files | {"README.md", "CONTRIBUTING.md"}) <= 20, files


def test_the_ways_of_add_del_and_network_status_are_listed() -> None:
    assert [heading for heading, _ in WAYS] == [
        "The way of an ADD",
        "The way of a DEL",
        "The way of a network-status",
    ]


def _c_functions(text: str) -> set[str]:
    return set(re.findall(r"^\w[\w *]*?\b(\w+)\([^;]*$", text, re.MULTILINE))


def _functions(tree: ast.AST, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            found |= _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(prefix + node.name)
    return found
