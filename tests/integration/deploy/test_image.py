"""The image: its Containerfile installs what a node needs. No registry is asked for its base image here."""

from __future__ import annotations

import re

import pytest

from tests.support.repository import REPOSITORY

CONTAINERFILE = (REPOSITORY / "deploy/Containerfile").read_text()


def packages(lock: str) -> dict[str, str]:
    """Return the packages of a lock with their versions."""
    text = (REPOSITORY / "requirements" / f"{lock}.lock").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE))


def test_the_image_gets_the_lock_of_a_node_and_the_wheel() -> None:
    copied = re.findall(r"^COPY (?!--from)(\S+) /$", CONTAINERFILE, re.MULTILINE)
    assert copied == ["requirements/run.lock", "dist/*.whl"]
    assert (REPOSITORY / ".dockerignore").read_text().split("\n")[1:4] == ["*", "!dist", "!requirements"]


def test_a_node_gets_no_compiler_and_no_tool_for_development() -> None:
    assert not packages("run").keys() & {"ziglang", "hatchling", "pytest", "pyright", "hypothesis", "ruff", "pip"}


@pytest.mark.parametrize("lock", ["run", "build", "test"])
def test_every_lock_has_the_versions_of_the_largest(lock: str) -> None:
    assert packages(lock).items() < packages("lint").items()
