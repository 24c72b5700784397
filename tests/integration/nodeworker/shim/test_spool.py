"""A DEL that no worker accepts is durable before the runtime gets success."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeworker.shim import frame
from tests.support.worker.shim_harness import Runtime, error_of, hang, reply, vanish

SOON: dict[str, str | bytes | None] = {"PLUMBLINE_DEADLINE": "0.1"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem with 64 KiB of room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a filesystem cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_del_without_worker_is_spooled_as_sent(runtime: Runtime):
    done = runtime.call("DEL", b'{"name":"n"}', {**SOON, "CNI_ARGS": b"\xff"})
    assert (done.returncode, done.stdout) == (0, b"")
    (file,) = runtime.spooled()
    request = frame.decode_frame(file.read_bytes())
    assert file.name == f"{request.request}.req"
    assert request.stdin == b'{"name":"n"}'
    assert request.env == {
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": "c0ffee",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "\udcff",
    }
    assert file.stat().st_mode & 0o7777 == 0o600
    assert runtime.spool.stat().st_mode & 0o7777 == 0o700


def test_a_del_without_answer_is_spooled_as_it_was_sent(runtime: Runtime):
    with runtime.worker(hang) as worker:
        done = runtime.call("DEL", env={"PLUMBLINE_DEADLINE": "0.3"})
    assert (done.returncode, done.stdout) == (0, b"")
    assert [file.read_bytes() for file in runtime.spooled()] == worker.frames


def test_interrupted_del_is_spooled_under_one_id(runtime: Runtime):
    with runtime.worker(vanish) as worker:
        done = runtime.call("DEL", env={"PLUMBLINE_DEADLINE": "0.3"})
    assert (done.returncode, done.stdout) == (0, b"")
    assert len(worker.frames) > 1
    assert {request.request for request in worker.requests} == {file.stem for file in runtime.spooled()}


def test_a_del_whose_worker_died_does_not_wait_for_the_deadline(runtime: Runtime):
    def die(_: socket.socket) -> None:
        runtime.socket.unlink()

    with runtime.worker(die) as worker:
        assert runtime.call("DEL", env={"PLUMBLINE_DEADLINE": "3600"}).returncode == 0
    assert [file.stem for file in runtime.spooled()] == [worker.requests[0].request]


def test_a_del_that_breaks_after_long_work_is_sent_again_first(runtime: Runtime):
    def work_and_vanish(connection: socket.socket) -> None:
        connection.settimeout(1.2)  # longer than a DEL waits for a listening worker
        with pytest.raises(TimeoutError):
            connection.recv(1)

    with runtime.worker(work_and_vanish, reply(frame.encode_reply(0, b""))) as worker:
        assert runtime.call("DEL").returncode == 0
    assert len(worker.frames) == 2
    assert runtime.spooled() == []


def test_the_largest_request_is_spooled_whole(runtime: Runtime):
    runtime.call("DEL", b" " * frame.STDIN_MAX, {**SOON, "CNI_A": "x" * (120 << 10), "CNI_B": "x" * (120 << 10)})
    (file,) = runtime.spooled()
    assert len(frame.decode_frame(file.read_bytes()).stdin) == frame.STDIN_MAX


def test_spooling_keeps_earlier_requests(runtime: Runtime):
    runtime.call("DEL", env=SOON)
    runtime.call("DEL", env=SOON)
    assert len(runtime.spooled()) == 2


def test_missing_spool_parent_is_an_error_for_go_cni(runtime: Runtime):
    error = error_of(runtime.call("DEL", env={**SOON, "PLUMBLINE_SPOOL": "/nowhere/plumbline/spool"}))
    assert error["code"] == 11
    assert "/nowhere/plumbline/spool" in error["msg"]
    assert "a folder on its path is missing" in error["msg"]
    assert "no such file" not in error["msg"].lower()
    assert "not found" not in error["msg"].lower()


def test_spool_that_is_a_file_is_an_error(runtime: Runtime):
    runtime.spool.write_text("")
    error = error_of(runtime.call("DEL", b'{"cniVersion":"0.4.0"}', SOON))
    assert (error["code"], error["cniVersion"]) == (11, "0.4.0")
    assert "Not a directory" in error["msg"]


def test_a_full_disk_is_an_error_and_leaves_nothing(runtime: Runtime, small_disk: Path):
    runtime.spool = small_disk / "spool"
    error = error_of(runtime.call("DEL", b" " * (200 << 10), {**SOON, "PLUMBLINE_SPOOL": str(runtime.spool)}))
    assert error["code"] == 11
    assert "No space left on device" in error["msg"]
    assert runtime.spooled() == []
