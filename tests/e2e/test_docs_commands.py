"""Every command in the documentation says whether a test runs it, and those that say so succeed.

A block of commands begins with one of these lines:

    ```sh run
    ```sh norun reason="needs a cluster"

The tutorial begins on an empty machine. The blocks of any other page run, in order, on a node with an attached pod.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.repository import REPOSITORY

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "nodeworker/shim/README.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
TUTORIAL = REPOSITORY / "docs/tutorial/first-pod.md"
NOT_COMMANDS = {"text", "json", "jsonc", "yaml", "python"}
TIMEOUT = 90.0
"""Seconds for one page on a busy machine."""

ATTACHED = "## 5."
"""The heading in the tutorial at which the pod is attached."""

PRIVATE_RUN = 'mount --make-rprivate / && mount -t tmpfs tmpfs /run -o mode=755 && exec "$@"'
SHELL = ("bash", "-eu", "-o", "pipefail", "-c")


class Block(NamedTuple):
    """A fenced block: where it begins, the line that opens it behind the fence, its text."""

    line: int
    info: str
    text: str


def blocks(page: Path) -> list[Block]:
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
    assert opened is None, f"{page}: a block is not closed"
    return found


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_says_whether_it_is_run(page: Path) -> None:
    for block in blocks(page):
        marked = block.info == "sh run" or re.fullmatch(r'sh norun reason="[^"]{8,}"', block.info)
        assert marked or block.info in NOT_COMMANDS, f"{name(page)}:{block.line}: mark the block ```{block.info}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_a_page_and_heading_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{name(page)} links to {target}"
        if heading:
            assert heading in headings(linked), f"{name(page)} links to {target}, which has no such heading"


def headings(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of *page*."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def script_of(page: Path, until: str = "") -> str:
    """Return the blocks of *page* that are to be run, in order, each behind a line that names it.

    *until*: only those before the heading that begins so.
    """
    text = page.read_text()
    end = text[: text.index(f"\n{until}")].count("\n") + 1 if until else len(text)
    runnable = [block for block in blocks(page) if block.info == "sh run" and block.line <= end]
    return "\n".join(f"echo '--- {name(page)}:{block.line}'\n{block.text}" for block in runnable)


@pytest.fixture(scope="module")
def environment(entry_point: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a reader who has installed Plumbline and its entry point."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    assert entry_point.exists()
    home = tmp_path_factory.mktemp("home")
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(home)}


@pytest.mark.timeout(2 * TIMEOUT)
def test_tutorial_succeeds_on_an_empty_machine(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", PRIVATE_RUN, "_", *SHELL, script_of(TUTORIAL)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert len(re.findall(r"^net1@", done.stdout, re.MULTILINE)) == 2  # attached and repaired; gone after the detach
    assert "no address is reserved" in done.stdout


@pytest.fixture(scope="module")
def node(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Yield the ID of a process in the namespaces of a node like the tutorial's, with the pod attached."""
    script = f"{script_of(TUTORIAL, until=ATTACHED)}\necho ready\nread -r _ || true\nkill %1\nwait\n"
    output = tmp_path_factory.mktemp("node") / "output"
    with (
        output.open("wb") as written,
        subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", PRIVATE_RUN, "_", *SHELL, script],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=written,
            stderr=subprocess.STDOUT,
        ) as shell,
    ):
        until = time.monotonic() + TIMEOUT
        while "\nready\n" not in output.read_text():
            assert shell.poll() is None, output.read_text()
            assert time.monotonic() < until, output.read_text()
            time.sleep(0.05)
        yield shell.pid
        assert shell.stdin is not None
        shell.stdin.close()
        assert shell.wait(TIMEOUT) == 0, output.read_text()


@pytest.mark.timeout(2 * TIMEOUT)
@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL and script_of(page)], ids=name)
def test_commands_succeed_on_a_node_with_a_pod(
    page: Path, environment: dict[str, str], node: int, tmp_path: Path
) -> None:
    """``plumbline`` reads the node's configuration here, as if it were the default one."""
    command = tmp_path / "plumbline"
    installed = Path(sys.executable).with_name("plumbline")
    command.write_text(f'#!/bin/sh\nexec {installed} --config /run/tutorial/plumbline.json "$@"\n')
    command.chmod(0o755)
    done = subprocess.run(
        ["nsenter", f"--target={node}", "--net", "--mount", *SHELL, f"cd /run/tutorial\n{script_of(page)}"],
        env={**environment, "PATH": f"{tmp_path}:{environment['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
