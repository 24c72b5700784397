"""The spool: an accepted request stays until it is removed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from events.ledger.memory import MemoryLedger
from events.schema import RequestId
from nodeworker.intake.spool import Spool
from nodeworker.journal.journal import Journal
from nodeworker.metrics import WorkerMetrics
from nodeworker.sandboxes.answers import Answers
from nodeworker.shim.frame import Frame, encode_request
from tests.support.worker.worker_harness import NODE


def frame(number: int) -> Frame:
    return Frame(
        request=RequestId(f"{number:032x}"),
        seconds_left=0.0,
        env={"CNI_COMMAND": "DEL", "CNI_IFNAME": "e"},
        stdin=b"{}",
    )


def spool_in(folder: Path) -> Spool:
    return Spool(folder, Journal(MemoryLedger(), NODE), Answers(), WorkerMetrics())


def test_requests_are_oldest_first_and_stay_until_removed(tmp_path: Path) -> None:
    spool = spool_in(tmp_path / "state" / "spool")
    for number in (3, 1, 2):
        spool.put(frame(number))
    for age, number in enumerate((3, 1, 2)):
        os.utime(tmp_path / "state" / "spool" / f"{number:032x}.req", ns=(age, age))
    assert [spooled.frame for spooled in spool.requests()] == [frame(3), frame(1), frame(2)]
    assert len(spool) == 3
    for spooled in spool.requests():
        spool.remove(spooled)
        spool.remove(spooled)
    assert len(spool) == 0


def test_spool_is_private(tmp_path: Path) -> None:
    spool_in(tmp_path / "spool").put(frame(1))
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    (file,) = (tmp_path / "spool").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_invalid_request_is_renamed_once(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    good = encode_request(frame(1))
    for number, content in enumerate((b"", good[:-1], good + b"x", b"\0" * 100)):
        (tmp_path / f"{number:032x}.req").write_bytes(content)
    spool.put(frame(9))
    assert [spooled.frame for spooled in spool.requests()] == [frame(9)]
    assert len(spool) == 1
    assert len(list(tmp_path.glob("*.bad"))) == 4


def test_drafts_are_no_requests(tmp_path: Path) -> None:
    (tmp_path / f".{1:032x}.tmp").write_bytes(b"PLB1")
    spool = spool_in(tmp_path)
    assert len(spool) == 0
    assert list(spool.requests()) == []


def test_failed_put_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = spool_in(tmp_path)

    def no_room(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space left"):
        spool.put(frame(1))
    assert list(tmp_path.iterdir()) == []
