"""Requests that wait for the default network's file, and requests that may not wait."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from events.schema import ErrorClass, Phase
from nodeworker.errors import RequestFailedError
from nodeworker.planning import readiness
from nodeworker.planning.readiness import Readiness, absence
from tests.support.waiting import BOUND


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make time pass faster."""
    monkeypatch.setattr(readiness, "_POLL", 0.001)
    monkeypatch.setattr(readiness, "_MARGIN", 0.0)


async def refusal(gate: Readiness, file: Path, left: float) -> RequestFailedError:
    with pytest.raises(RequestFailedError) as caught:
        await gate.wait(str(file), left, Phase.RESOLVE)
    return caught.value


async def test_no_request_waits_without_a_file_or_if_it_exists(tmp_path: Path) -> None:
    gate = Readiness(seats=0)
    await gate.wait("", 0, Phase.RESOLVE)
    await gate.wait(str(tmp_path), 0, Phase.RESOLVE)


@pytest.mark.usefixtures("quick")
async def test_request_goes_on_when_the_file_appears(tmp_path: Path) -> None:
    file = tmp_path / "not" / "yet"
    waiting = asyncio.create_task(Readiness(seats=1).wait(str(file), 30, Phase.RESOLVE))
    await asyncio.sleep(0)
    assert not waiting.done()
    file.parent.mkdir()
    file.touch()
    async with asyncio.timeout(BOUND):
        await waiting


@pytest.mark.usefixtures("quick")
async def test_request_fails_with_code_11_and_the_file_before_its_time_is_up(tmp_path: Path) -> None:
    error = await refusal(Readiness(seats=1), tmp_path / "absent", 0.01)
    assert (error.failure.error_class, error.failure.code) == (ErrorClass.NODE_NOT_READY, 11)
    assert f"{tmp_path}/absent" in error.failure.message
    assert "No such file or directory" in error.failure.message


@pytest.mark.usefixtures("quick")
async def test_no_request_waits_longer_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "LONGEST", 0.01)
    async with asyncio.timeout(BOUND):
        await refusal(Readiness(seats=1), tmp_path / "absent", 3600)


@pytest.mark.usefixtures("quick")
async def test_requests_without_a_seat_fail_and_seats_are_reused(tmp_path: Path) -> None:
    gate = Readiness(seats=1)
    first = asyncio.create_task(gate.wait(str(tmp_path / "absent"), 3600, Phase.RESOLVE))
    await asyncio.sleep(0)
    async with asyncio.timeout(BOUND):
        await refusal(gate, tmp_path / "absent", 3600)
    assert not first.done()
    first.cancel()
    await asyncio.wait([first])
    again = asyncio.create_task(gate.wait(str(tmp_path / "absent"), 3600, Phase.RESOLVE))
    await asyncio.sleep(0)
    assert not again.done()
    (tmp_path / "absent").touch()
    async with asyncio.timeout(BOUND):
        await again


@pytest.mark.parametrize("file", ["/proc/self/status/x", "a\0b", "x" * 5000])
def test_a_file_that_can_not_be_read_is_absent_with_a_reason(file: str) -> None:
    assert absence(file)
