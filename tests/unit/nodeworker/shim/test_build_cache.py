"""The build cache: one build for each key, whatever happens to its file, its builders or their number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nodeworker.shim.build_cache import BuildCache, user_folder
from tests.support.repository import REPOSITORY

BUILDER = """
import sys
from pathlib import Path
from nodeworker.shim.build_cache import BuildCache

def build(out):
    print("building", flush=True)
    sys.stdin.readline()
    out.write_bytes(b"program")

print(BuildCache(Path(sys.argv[1])).obtain("key", build, lambda: print("waiting", flush=True)))
"""
"""A process that says when it builds or waits, and ends its build when it gets a line."""


class Builds:
    """A builder that counts its builds."""

    def __init__(self, content: bytes = b"program") -> None:
        self.content = content
        self.count = 0

    def __call__(self, out: Path) -> None:
        self.count += 1
        out.write_bytes(self.content)


def start_builder(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(folder)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(builder: subprocess.Popen[str]) -> str:
    assert builder.stdout
    return builder.stdout.readline().strip()


def test_a_key_is_built_once(tmp_path: Path) -> None:
    cache, build = BuildCache(tmp_path / "cache"), Builds()
    assert cache.find("key") is None
    built = cache.obtain("key", build)
    assert built.read_bytes() == b"program"
    assert BuildCache(tmp_path / "cache").obtain("key", build) == cache.find("key") == built
    assert build.count == 1


def test_another_key_is_another_build(tmp_path: Path) -> None:
    cache, build = BuildCache(tmp_path), Builds()
    assert cache.obtain("key", build) != cache.obtain("key2", build)
    assert build.count == 2


@pytest.mark.parametrize("damaged", [b"", b"prog", b"PROGRAM"])
def test_a_damaged_file_is_built_again(tmp_path: Path, damaged: bytes) -> None:
    cache, build = BuildCache(tmp_path), Builds()
    cache.obtain("key", build).write_bytes(damaged)
    assert cache.find("key") is None
    assert cache.obtain("key", build).read_bytes() == b"program"
    assert build.count == 2


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(out: Path) -> None:
        out.write_bytes(b"half")
        raise ValueError("no compiler")

    cache, build = BuildCache(tmp_path), Builds()
    with pytest.raises(ValueError, match="no compiler"):
        cache.obtain("key", fail)
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]
    assert cache.obtain("key", build).read_bytes() == b"program"


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    with start_builder(tmp_path) as first:
        assert said(first) == "building"
        with start_builder(tmp_path) as second:
            assert said(second) == "waiting"
            first.communicate("done\n")
            built = said(second)
        assert second.returncode == first.returncode == 0
    assert Path(built).read_bytes() == b"program"


def test_a_killed_build_gives_way_to_the_next(tmp_path: Path) -> None:
    with start_builder(tmp_path) as first:
        assert said(first) == "building"
        with start_builder(tmp_path) as second:
            assert said(second) == "waiting"
            first.kill()
            assert said(second) == "building"
            output, _ = second.communicate("done\n")
    assert Path(output.strip()).read_bytes() == b"program"


def test_the_folder_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert user_folder() == tmp_path / ".cache" / "plumbline"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert user_folder() == Path("/var/cache/plumbline")
