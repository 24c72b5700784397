"""The image: what its Containerfile copies is there, and what it installs is what a node needs.

No registry is asked for a base image here, so the steps are tried and not the image.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY

CONTAINERFILE = (REPOSITORY / "deploy/Containerfile").read_text()
STAGES = re.split(r"^FROM .*$", CONTAINERFILE, flags=re.MULTILINE)[1:]
COMPILATION = "RUN python -m nodeworker.shim.build "


def copied(stage: str) -> list[tuple[list[str], str]]:
    """Return what *stage* copies from the checkout: the sources, and where to."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", stage, re.MULTILINE)
    return [(words[:-1], words[-1]) for words in map(str.split, lines)]


def packages(lock: str) -> dict[str, str]:
    """Return the packages of a lock with their versions."""
    text = (REPOSITORY / "requirements" / f"{lock}.lock").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE))


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().split("\n")
    for sources, _ in copied(CONTAINERFILE):
        for source in sources:
            assert (REPOSITORY / source).exists()
            assert f"!{source.split('/')[0]}" in ignored


def test_the_entry_point_is_compiled_from_the_files_copied_before(tmp_path: Path) -> None:
    """So its layer stays while other code changes."""
    before, found, _ = STAGES[0].partition(COMPILATION)
    assert found
    for sources, to in copied(before):
        for source in map(REPOSITORY.joinpath, sources):
            target = tmp_path / to / source.name if to.endswith("/") else tmp_path / to
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    asked = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {ASK}"]
    subprocess.run(asked, check=True)
    assert not (tmp_path / "events/schema").exists()


ASK = "from nodeworker.shim import build; build.main(['--requirements'])"


def test_the_image_has_no_compiler_and_no_tool_for_development() -> None:
    assert not packages("run").keys() & {"ziglang", "hatchling", "pytest", "pyright", "hypothesis", "ruff", "pip"}
    assert [lock for stage in STAGES[1:] for lock in re.findall(r"requirements/(\w+)\.lock", stage)] == ["run"]
    assert STAGES[-1].count("COPY") == 1


@pytest.mark.parametrize("lock", ["run", "build", "test"])
def test_every_lock_has_the_versions_of_the_largest(lock: str) -> None:
    assert packages(lock).items() < packages("lint").items()
