"""Log files of configurations: their owner and growth, and that their errors affect nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nodeworker.intake.log_files import LogFiles
from nodeworker.planning.resolve.netconf import LogOptions

OPTIONS = LogOptions(max_size=1, max_backups=2, max_age=5)
LINE = "x" * ((1 << 19) + 1)
"""Of which one fits a file, and two do not."""


@pytest.fixture
def files() -> Iterator[LogFiles]:
    with LogFiles() as files:
        yield files


def begins(path: Path) -> str:
    return path.read_text()[:1]


def test_file_and_folder_are_made_for_their_owner_only(files: LogFiles, tmp_path: Path) -> None:
    path = tmp_path / "new" / "plumbline.log"
    files.write(str(path), OPTIONS, "first, 100 % äß \udcff")
    files.write(str(path), OPTIONS, "second")
    assert path.read_text() == "first, 100 % äß \\udcff\nsecond\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_full_file_is_set_aside_and_the_oldest_go(files: LogFiles, tmp_path: Path) -> None:
    path = tmp_path / "log"
    for first in "abcd":
        files.write(str(path), OPTIONS, first + LINE)
    assert [begins(tmp_path / name) for name in ("log", "log.1", "log.2")] == ["d", "c", "b"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log", "log.1", "log.2"]


def test_rotated_files_above_the_maximum_age_are_deleted(files: LogFiles, tmp_path: Path) -> None:
    path = tmp_path / "log"
    files.write(str(path), OPTIONS, LINE)
    long_ago = time.time() - 6 * 86400
    os.utime(path, (long_ago, long_ago))
    files.write(str(path), OPTIONS, LINE)
    assert [each.name for each in tmp_path.iterdir()] == ["log"]


def test_age_of_zero_keeps_any(files: LogFiles, tmp_path: Path) -> None:
    path = tmp_path / "log"
    options = LogOptions(max_size=1, max_age=0)
    files.write(str(path), options, LINE)
    os.utime(path, (1, 1))
    files.write(str(path), options, LINE)
    assert (tmp_path / "log.1").exists()


def test_options_that_change_count_from_then_on(files: LogFiles, tmp_path: Path) -> None:
    path = tmp_path / "log"
    files.write(str(path), LogOptions(max_size=100), LINE)
    files.write(str(path), LogOptions(max_size=100), LINE)
    files.write(str(path), OPTIONS, "new")
    assert path.read_text() == "new\n"


@pytest.mark.parametrize("kind", ["relative", "folder", "fifo", "below a file"])
def test_unusable_file_is_logged_once_and_breaks_nothing(files: LogFiles, tmp_path: Path, kind: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    path = {
        "relative": "plumbline.log",
        "folder": f"{tmp_path}/folder",
        "fifo": f"{tmp_path}/fifo",
        "below a file": f"{tmp_path}/file/log",
    }[kind]
    with capture_logs() as logs:
        files.write(path, OPTIONS, "line")
        files.write(path, OPTIONS, "line")
    assert [(entry["event"], entry["file"]) for entry in logs] == [("log_file_unusable", path)]


def test_file_that_is_usable_again_is_used(files: LogFiles, tmp_path: Path) -> None:
    blocker = tmp_path / "folder"
    blocker.touch()
    with capture_logs():
        files.write(f"{blocker}/log", OPTIONS, "lost")
    blocker.unlink()
    files.write(f"{blocker}/log", OPTIONS, "kept")
    assert (blocker / "log").read_text() == "kept\n"
