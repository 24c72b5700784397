"""host-local with foreign files in its folder, failing disks, and kills at any step."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeworker.plugins.native.ipam import reservations
from tests.support.plugins.ipam_harness import WAYS, native, needs_plugins, network, on_disk, reserved

SUBNET = {"subnet": "10.1.0.0/24"}
DUAL = {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]}
MINE = b"c1\r\nnet1"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of sixteen pages."""
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


@pytest.fixture
def without_unnamed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = os.open

    def refusing(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return honest(path, flags, *args, **kwargs)

    monkeypatch.setattr(reservations.os, "open", refusing)


def fill(where: Path, *, but: int = 0) -> None:
    """Use up the file system at *where* except for *but* pages."""
    system = os.statvfs(where)
    (where / "filler").write_bytes(bytes((system.f_bavail - but) * system.f_bsize))


def addresses(outcome: Any) -> list[str]:
    assert outcome.code == 0, outcome.message
    return [each["address"].split("/")[0] for each in outcome.result["ips"]]


def test_a_foreign_file_is_neither_assigned_nor_freed(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (tmp_path / "elsewhere").write_bytes(MINE)
    (folder / "10.1.0.2").write_bytes(b"")
    (folder / "10.1.0.3").mkdir()
    os.mkfifo(folder / "10.1.0.4")
    (folder / "10.1.0.5").symlink_to(folder / "nothing")
    (folder / "10.1.0.6").symlink_to(tmp_path / "elsewhere")
    (folder / "10.1.0.7").write_bytes(b"\xff\x00\xfe")
    (folder / "10.1.0.8").write_bytes(MINE + b"x" * 5000)
    (folder / "10.1.0.08").write_bytes(MINE)
    (folder / "copy of 10.1.0.9").write_bytes(MINE)
    before = sorted(os.listdir(folder))
    config = network(tmp_path, SUBNET)
    assert native("CHECK", config).code == 999
    assert addresses(native("ADD", config)) == ["10.1.0.9"]
    assert addresses(native("ADD", config)) == ["10.1.0.9"]
    taken = native("ADD", config, "c2", args="IP=10.1.0.2")
    assert taken.code == 999
    assert "10.1.0.2 is taken" in taken.message
    assert native("DEL", config).code == 0
    assert set(os.listdir(folder)) == {*before, "lock", "last_reserved_ip.0"}


def test_a_file_that_changed_hands_behind_the_lock_is_not_freed(tmp_path: Path) -> None:
    config = network(tmp_path, SUBNET)
    native("ADD", config)
    folder = tmp_path / "net"
    # In place: the folder does not change.
    with (folder / "10.1.0.2").open("r+b") as file:
        file.truncate()
        file.write(b"c2\r\nnet1")
    assert native("DEL", config).code == 0
    assert reserved(tmp_path) == {"10.1.0.2": b"c2\r\nnet1"}


def test_a_range_full_of_unowned_files_is_exhausted(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    for number in range(2, 7):
        (folder / f"10.1.0.{number}").touch()
    refused = native("ADD", network(tmp_path, {"subnet": "10.1.0.0/29"}))
    assert refused.code == 999
    assert "network net to net1" in refused.message
    assert "10.1.0.1-10.1.0.6 are taken" in refused.message


@pytest.mark.parametrize("pages", [0, 1])
@pytest.mark.parametrize("ipam", [SUBNET, DUAL])
def test_a_full_disk_costs_an_add_and_leaves_nothing(small: Path, ipam: dict[str, Any], pages: int) -> None:
    config = network(small, ipam)
    (small / "net").mkdir()
    fill(small, but=pages)
    refused = native("ADD", config)
    assert refused.code == 5
    assert f"{small}/net" in refused.message
    assert "No space left on device" in refused.message
    assert reserved(small) == {}
    (small / "filler").unlink()
    assert addresses(native("ADD", config))[0] == "10.1.0.2"


@pytest.mark.usefixtures("without_unnamed_files")
def test_a_full_disk_without_unnamed_files_leaves_nothing_either(small: Path) -> None:
    (small / "net").mkdir()
    fill(small)
    assert native("ADD", network(small, SUBNET)).code == 5
    assert reserved(small) == {}


def test_a_full_disk_does_not_keep_from_freeing(small: Path) -> None:
    config = network(small, DUAL)
    native("ADD", config)
    fill(small)
    assert native("CHECK", config).code == 0
    assert native("DEL", config).code == 0
    assert reserved(small) == {}


def test_a_read_only_disk_is_an_error_unless_there_is_nothing_to_do(small: Path) -> None:
    config = network(small, SUBNET)
    native("ADD", config)
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    for verb, container in (("ADD", "c2"), ("DEL", "c1")):
        refused = native(verb, config, container)
        assert refused.code == 5
        assert "Read-only file system" in refused.message
    assert native("CHECK", config).code == 0
    assert native("DEL", config, "c2").code == 0
    assert native("DEL", {**config, "name": "other"}).code == 0
    assert reserved(small) == {"10.1.0.2": MINE}


@pytest.mark.usefixtures("without_unnamed_files")
def test_it_works_where_files_have_a_name_from_the_start(tmp_path: Path) -> None:
    config = network(tmp_path, DUAL)
    assert addresses(native("ADD", config)) == ["10.1.0.2", "fd00::2"]
    assert addresses(native("ADD", config, "c2")) == ["10.1.0.3", "fd00::3"]
    assert reserved(tmp_path) == {
        "10.1.0.2": MINE,
        "fd00::2": MINE,
        "10.1.0.3": b"c2\r\nnet1",
        "fd00::3": b"c2\r\nnet1",
    }
    assert native("DEL", config).code == 0
    assert set(reserved(tmp_path)) == {"10.1.0.3", "fd00::3"}


@pytest.mark.parametrize("spoil", [lambda net: net.write_text(""), lambda net: (net / "lock").mkdir(parents=True)])
def test_a_folder_that_is_none_or_has_no_lock_is_an_error(tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    spoil(tmp_path / "net")
    for verb in ("ADD", "DEL", "CHECK"):
        refused = native(verb, network(tmp_path, SUBNET))
        assert refused.code == 5
        assert f"{tmp_path}/net" in refused.message


def test_del_or_check_of_an_unused_network_creates_nothing(tmp_path: Path) -> None:
    config = network(tmp_path, SUBNET)
    assert native("DEL", config).code == 0
    assert native("CHECK", config).code == 999
    assert os.listdir(tmp_path) == []


def test_a_del_does_not_need_sound_ranges(tmp_path: Path) -> None:
    native("ADD", network(tmp_path, SUBNET))
    assert native("DEL", network(tmp_path, {"subnet": "10.1.0.9/24"})).code == 0
    assert reserved(tmp_path) == {}


@pytest.fixture
def held_lock(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "net").mkdir()
    fd = os.open(tmp_path / "net" / "lock", os.O_CREAT | os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield fd
    os.close(fd)


def test_a_locked_folder_is_used_once_unlocked(tmp_path: Path, held_lock: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:
            fcntl.flock(held_lock, fcntl.LOCK_UN)

    monkeypatch.setattr(reservations.time, "sleep", pause)
    assert addresses(native("ADD", network(tmp_path, SUBNET))) == ["10.1.0.2"]
    assert len(pauses) == 20
    assert max(pauses) <= 0.01


@pytest.mark.usefixtures("held_lock")
def test_a_lock_held_too_long_is_a_retryable_error(tmp_path: Path) -> None:
    refused = native("ADD", network(tmp_path, SUBNET), lock_timeout=0.01)
    assert refused.code == 11
    assert "another process" in refused.message
    assert reserved(tmp_path) == {}


def test_a_folder_that_is_replaced_while_waiting_is_not_written_to(
    tmp_path: Path, held_lock: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pause(_: float) -> None:
        (tmp_path / "net").rename(tmp_path / "old")
        (tmp_path / "net").mkdir()
        (tmp_path / "net" / "lock").touch()
        fcntl.flock(held_lock, fcntl.LOCK_UN)

    monkeypatch.setattr(reservations.time, "sleep", pause)
    refused = native("ADD", network(tmp_path, SUBNET))
    assert refused.code == 11
    assert "was replaced" in refused.message
    assert os.listdir(tmp_path / "old") == os.listdir(tmp_path / "net") == ["lock"]


class _Mortal:
    """The module ``os``, whose functions end the process at a chosen call."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._left:
                os._exit(9)
            self._left -= 1
            return found(*args, **kwargs)

        return call


def killed(verb: str, config: dict[str, Any], calls: int) -> bool:
    """Do *verb* in a child that dies after that number of system calls; return whether it died."""
    child = os.fork()
    if child == 0:
        reservations.os = _Mortal(calls)  # type: ignore[assignment]
        os._exit(native(verb, config).code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {0, 9}
    return code == 9


def every_death(
    base: Path, verb: str, prepare: Callable[[dict[str, Any]], None], ipam: dict[str, Any]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a folder for each point in *verb* at which it was killed."""
    calls = 0
    while True:
        data = base / str(calls)
        config = network(data, ipam)
        prepare(config)
        if not killed(verb, config, calls):
            assert calls > 10, "it did not come by the points that matter"
            return
        yield data, config
        shutil.rmtree(data, ignore_errors=True)
        calls += 1


@pytest.mark.parametrize("ipam", [SUBNET, DUAL])
@pytest.mark.parametrize("way", ["native", pytest.param("executed", marks=needs_plugins)])
def test_an_add_that_was_killed_anywhere_is_repeated_or_undone(tmp_path: Path, ipam: dict[str, Any], way: str) -> None:
    def prepare(config: dict[str, Any]) -> None:
        native("ADD", config, "other")

    for data, config in every_death(tmp_path, "ADD", prepare, ipam):
        left = reserved(data)
        assert set(left.values()) <= {b"other\r\nnet1", MINE}, "a foreign file"
        if way == "native":
            found = addresses(native("ADD", config))
            mine = [name for name, content in reserved(data).items() if content == MINE]
            assert sorted(mine) == sorted(found)
            assert {name for name, content in left.items() if content == MINE} <= set(found), "not what it had"
        assert WAYS[way]("DEL", config).code == 0
        assert set(reserved(data).values()) == {b"other\r\nnet1"}


def test_an_add_that_was_killed_while_it_changes_its_address_is_repeated(tmp_path: Path) -> None:
    def prepare(config: dict[str, Any]) -> None:
        config["runtimeConfig"] = {}
        native("ADD", config)
        config["runtimeConfig"] = {"ips": ["10.1.0.77"]}

    for data, config in every_death(tmp_path, "ADD", prepare, SUBNET):
        assert addresses(native("ADD", config)) == ["10.1.0.77"]
        assert reserved(data) == {"10.1.0.77": MINE}


def test_a_del_that_was_killed_anywhere_is_repeated(tmp_path: Path) -> None:
    def prepare(config: dict[str, Any]) -> None:
        native("ADD", config, "other")
        native("ADD", config)

    for data, config in every_death(tmp_path, "DEL", prepare, DUAL):
        assert native("DEL", config).code == 0
        assert set(on_disk(data)) == {"10.1.0.2", "fd00::2", "lock", "last_reserved_ip.0", "last_reserved_ip.1"}
