"""The documentation's commands succeed: the blocks that begin with ```sh run, page by page.

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

import pytest

from tests.support.docs_pages import PAGES, name, script_of
from tests.support.repository import REPOSITORY

TUTORIAL = REPOSITORY / "docs/tutorial/first-pod.md"
ATTACHED = "## 5."
"""The heading in the tutorial at which the pod is attached."""
TIMEOUT = 240.0
"""Seconds for one page on a busy machine."""

PRIVATE_RUN = 'mount --make-rprivate / && mount -t tmpfs tmpfs /run -o mode=755 && exec "$@"'
SHELL = ("bash", "-eu", "-o", "pipefail", "-c")


@pytest.fixture(scope="module")
def environment(entry_point: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a reader who has installed Plumbline and its entry point."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    assert entry_point.exists()
    home = tmp_path_factory.mktemp("home")
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(home)}


def run(command: list[str], environment: dict[str, str]) -> str:
    """Run *command*, which must succeed, and return what it prints."""
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.timeout(2 * TIMEOUT)
def test_tutorial_succeeds_on_an_empty_machine(environment: dict[str, str]) -> None:
    on_empty_machine = ["unshare", "--net", "--mount", "sh", "-c", PRIVATE_RUN, "_"]
    printed = run([*on_empty_machine, *SHELL, script_of(TUTORIAL)], environment)
    assert len(re.findall(r"^net1@", printed, re.MULTILINE)) == 2  # attached and repaired; gone after the detach
    assert "no address is reserved" in printed


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
    run(
        ["nsenter", f"--target={node}", "--net", "--mount", *SHELL, f"cd /run/tutorial\n{script_of(page)}"],
        {**environment, "PATH": f"{tmp_path}:{environment['PATH']}"},
    )
