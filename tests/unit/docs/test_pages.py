"""Pages: every block of commands says whether a test runs it, and every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.docs_pages import PAGES, blocks, headings, name, prose

NOT_COMMANDS = {"text", "json", "jsonc", "yaml"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_says_whether_it_is_run(page: Path) -> None:
    for block in blocks(page):
        marked = block.info == "sh run" or re.fullmatch(r'sh norun reason="[^"]{8,}"', block.info)
        assert marked or block.info in NOT_COMMANDS, f"{name(page)}:{block.line}: mark the block ```{block.info}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_is_indented_instead_of_fenced(page: Path) -> None:
    assert not re.findall(r"\n\n {4}\S.*", prose(page))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_a_page_and_heading_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{name(page)} links to {target}"
        assert not heading or heading in headings(linked), f"{name(page)} links to {target}: no such heading"


def test_every_page_is_in_the_index() -> None:
    index = next(page for page in PAGES if name(page) == "docs/README.md")
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)\)", index.read_text())}
    assert {page for page in PAGES if name(page).startswith("docs/")} - {index} <= linked
