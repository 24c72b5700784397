"""Files that other processes may read at any moment."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from nodeworker.host.install.files import locked, move, remove, write_file


def test_a_file_is_written_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert write_file(path, b"content", 0o755)
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o7777 == 0o755
    assert list(tmp_path.iterdir()) == [path]


def test_current_file_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_file(path, b"content", 0o600)
    before = path.stat()
    assert not write_file(path, b"content", 0o600)
    assert path.stat().st_ino == before.st_ino
    assert write_file(path, b"content", 0o755)


def test_running_program_is_replaced_and_continues(tmp_path: Path) -> None:
    program = tmp_path / "cat"
    shutil.copy2(shutil.which("cat") or "", program)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        try:
            content = program.read_bytes()
            assert write_file(program, content + b"\0", 0o755)
            assert running.communicate(b"still here", timeout=10)[0] == b"still here"
        finally:
            running.kill()
    assert subprocess.run([program], input=b"new", capture_output=True, check=True).stdout == b"new"


@pytest.mark.parametrize("content", [b"old", b"new"])
def test_draft_of_a_killed_installer_is_removed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o600)
    (tmp_path / ".x.draft").write_bytes(b"half")
    write_file(path, content, 0o600)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == content


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "x"
    (path / "in it").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_file(path, b"content", 0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_reader_never_sees_a_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    versions = [b"a" * 100_000, b"b" * 200_000]
    write_file(path, versions[0], 0o600)
    done = threading.Event()
    seen: set[bytes] = set()

    def look() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=look)
    reader.start()
    try:
        while len(seen) < 2:
            for version in versions:
                write_file(path, version, 0o600)
    finally:
        done.set()
        reader.join()
    assert seen == set(versions)


def test_folder_lock_is_exclusive(tmp_path: Path) -> None:
    entered = threading.Event()

    def second() -> None:
        with locked(tmp_path):
            entered.set()

    with locked(tmp_path):
        other = threading.Thread(target=second)
        other.start()
        assert not entered.wait(0.1)
    assert entered.wait(10)
    other.join()


def test_remove_reports_whether_the_file_existed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    move(path, tmp_path / "y")
    assert not remove(path)
    assert remove(tmp_path / "y")
    assert not list(tmp_path.iterdir())
