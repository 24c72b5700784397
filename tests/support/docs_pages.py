"""The documentation as tests see it: pages, their blocks of commands, their headings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.support.repository import REPOSITORY

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "nodeworker/shim/README.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]


class Block(NamedTuple):
    """A fenced block: where it begins, the line that opens it behind the fence, its text."""

    line: int
    info: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of *page*."""
    found: list[Block] = []
    opened: tuple[int, str, list[str]] | None = None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("```"):
            if opened:
                opened[2].append(line)
        elif opened is None:
            opened = number, line.removeprefix("```"), []
        else:
            found.append(Block(opened[0], opened[1], "\n".join(opened[2])))
            opened = None
    assert opened is None, f"{name(page)}: a block is not closed"
    return found


def name(page: Path) -> str:
    """Return the path of *page* in the repository."""
    return str(page.relative_to(REPOSITORY))


def prose(page: Path) -> str:
    """Return *page* without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of *page*."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def script_of(page: Path, until: str = "") -> str:
    """Return the blocks of *page* that are to be run, in order, each behind a line that names it.

    *until*: only those before the heading that begins so.
    """
    text = page.read_text()
    end = text[: text.index(f"\n{until}")].count("\n") + 1 if until else len(text)
    runnable = [block for block in blocks(page) if block.info == "sh run" and block.line <= end]
    return "\n".join(f"echo '--- {name(page)}:{block.line}'\n{block.text}" for block in runnable)
