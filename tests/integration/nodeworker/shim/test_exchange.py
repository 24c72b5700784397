"""The shipped entry point, between a runtime and a worker."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from nodeworker.shim import frame
from tests.support.worker.shim_harness import Runtime, error_of, hang, reply, reply_bytewise, vanish

ANSWER = frame.encode_reply(0, b'{"cniVersion":"1.1.0"}')


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS", "SURPRISE"])
def test_answer_of_the_worker_reaches_the_runtime(runtime: Runtime, command: str):
    with runtime.worker(reply(ANSWER)) as worker:
        done = runtime.call(command, b'{"name":"n"}', {"CNI_ARGS": "A=1;B=2", "OTHER": "x", "CNI": "y"})
    assert (done.returncode, done.stdout) == (0, b'{"cniVersion":"1.1.0"}')
    (request,) = worker.requests
    assert request.env == {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c0ffee",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "A=1;B=2",
    }
    assert request.stdin == b'{"name":"n"}'
    assert runtime.spooled() == []


@pytest.mark.parametrize(("code", "text"), [(0, b""), (1, b'{"code":7}'), (3, b"x"), (255, b"x")])
def test_exit_code_and_output_are_the_workers(runtime: Runtime, code: int, text: bytes):
    with runtime.worker(reply(frame.encode_reply(code, text))):
        done = runtime.call("DEL")
    assert (done.returncode, done.stdout) == (code, text)
    assert runtime.spooled() == []


def test_every_request_has_its_own_id(runtime: Runtime):
    with runtime.worker(reply(ANSWER)) as worker:
        runtime.call("ADD")
        runtime.call("ADD")
    assert len({request.request for request in worker.requests}) == 2


def test_the_largest_reply_arrives_whole(runtime: Runtime):
    text = os.urandom(frame.REPLY_MAX)
    with runtime.worker(reply(frame.encode_reply(0, text))):
        assert runtime.call("ADD").stdout == text


def test_a_reply_in_single_bytes_arrives_whole(runtime: Runtime):
    with runtime.worker(reply_bytewise(ANSWER)):
        assert runtime.call("ADD").stdout == b'{"cniVersion":"1.1.0"}'


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_broken_connection_is_tried_again_with_the_same_request(runtime: Runtime, command: str):
    with runtime.worker(vanish, reply(ANSWER[:3]), reply(ANSWER[:-1]), reply(ANSWER)) as worker:
        done = runtime.call(command)
    assert (done.returncode, done.stdout) == (0, b'{"cniVersion":"1.1.0"}')
    requests = worker.requests
    assert len(requests) == 4
    assert len({request.request for request in requests}) == 1
    left = [request.seconds_left for request in requests]
    assert 20 >= left[0] > left[1] > left[2] > left[3] > 15


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_restarted_worker_gets_the_request_again(runtime: Runtime, command: str):
    left = threading.Event()

    def leave(_: socket.socket) -> None:
        runtime.socket.unlink()
        left.set()

    with (
        runtime.worker(leave) as first,
        subprocess.Popen(
            [runtime.binary], env=runtime.environment(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout
        assert left.wait(30)
        with runtime.worker(reply(ANSWER)) as second:
            assert process.stdout.read() == b'{"cniVersion":"1.1.0"}'
            assert process.wait() == 0
    assert first.requests[0].request == second.requests[0].request


def test_answer_before_the_whole_request_is_read(runtime: Runtime):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime.socket))
        listener.listen()
        with subprocess.Popen(
            [runtime.binary], env=runtime.environment("ADD"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin
            assert process.stdout
            process.stdin.write(b" " * frame.STDIN_MAX)
            process.stdin.close()
            with listener.accept()[0] as connection:
                connection.recv(1)
                connection.sendall(frame.encode_reply(1, b'{"code":4}'))
            assert process.stdout.read() == b'{"code":4}'
            assert process.wait() == 1


@pytest.mark.parametrize("command", ["ADD", "CHECK", "GC", "STATUS", "SURPRISE"])
def test_no_worker_by_the_deadline_is_error_11(runtime: Runtime, command: str):
    error = error_of(runtime.call(command, b'{"cniVersion":"0.4.0"}', {"PLUMBLINE_DEADLINE": "0.1"}))
    assert (error["code"], error["cniVersion"]) == (11, "0.4.0")
    assert command in error["msg"]
    assert f"the worker at {runtime.socket} could not be reached within 100 ms" in error["msg"]
    assert runtime.spooled() == []


@pytest.mark.parametrize(("behaviour", "words"), [(hang, "gave no answer"), (vanish, "closed the connection")])
def test_no_answer_by_the_deadline_is_error_11(runtime: Runtime, behaviour, words: str):
    with runtime.worker(behaviour):
        error = error_of(runtime.call("ADD", env={"PLUMBLINE_DEADLINE": "0.5"}))
    assert error["code"] == 11
    assert words in error["msg"]


def test_a_torn_reply_prints_nothing_of_it(runtime: Runtime):
    with runtime.worker(reply(ANSWER[:-1])):
        error = error_of(runtime.call("ADD", env={"PLUMBLINE_DEADLINE": "0.2"}))
    assert error["code"] == 11


def test_full_backlog_is_busy_not_absent(runtime: Runtime):
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(runtime.socket))
        listener.listen(0)
        waiting.connect(str(runtime.socket))
        error = error_of(runtime.call("ADD", env={"PLUMBLINE_DEADLINE": "0.2"}))
    assert "had no room" in error["msg"]


def test_status_waits_two_seconds_at_most(runtime: Runtime):
    with runtime.worker(hang) as worker:
        error = error_of(runtime.call("STATUS"))
    assert error["code"] == 11
    assert worker.requests[0].seconds_left <= 2


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"PLB2\0\0\0\0\0\0\0\0",
        b"PLB1\0\0\0\0\x01\0\x80\0",
        b"PLB1\0\0\0\0\xff\xff\xff\xff",
        b"PLB1\0\x01\0\0\x02\0\0\0{}",
        b"PLB1\x01\0\0\0\0\0\0\0",
    ],
    ids=["http", "next-magic", "longer-than-8-MiB", "huge", "exit-256", "failure-without-text"],
)
def test_another_protocol_is_named_as_version_skew(runtime: Runtime, raw: bytes):
    with runtime.worker(reply(raw)) as worker:
        error = error_of(runtime.call("ADD"))
        assert error["code"] == 11
        assert "upgrade the older" in error["msg"]
        assert len(worker.frames) == 1
        assert (runtime.call("DEL").returncode, len(runtime.spooled())) == (0, 1)


def test_version_needs_no_worker_and_no_input(runtime: Runtime):
    done = runtime.call("VERSION", b"not even JSON", {"PLUMBLINE_DEADLINE": "nonsense"})
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "cniVersion": "1.1.0",
        "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


@pytest.mark.parametrize("command", ["ADD", "DEL", "VERSION"])
def test_call_as_own_delegate_is_refused(runtime: Runtime, command: str):
    with runtime.worker(reply(ANSWER)) as worker:
        error = error_of(runtime.call(command, env={"PLUMBLINE_DELEGATE": ""}))
    assert error["code"] == 7
    assert worker.frames == []
    assert runtime.spooled() == []


def test_an_environment_that_is_not_utf8_arrives_byte_for_byte(runtime: Runtime):
    with runtime.worker(reply(ANSWER)) as worker:
        runtime.call("ADD", env={"CNI_ARGS": b"\xff\xfe=\x80"})
    assert os.fsencode(worker.requests[0].env["CNI_ARGS"]) == b"\xff\xfe=\x80"


@pytest.mark.parametrize("path", [b'/no\xff"\\\n/x', b"/\x7f\xc3\xa9"])
def test_error_is_json_whatever_bytes_the_path_holds(runtime: Runtime, path: bytes):
    env: dict[str, str | bytes | None] = {"PLUMBLINE_SOCKET": path, "PLUMBLINE_DEADLINE": "0.05"}
    assert error_of(runtime.call("ADD", env=env))["code"] == 11


def test_one_mebibyte_of_configuration_passes_through_a_pipe(runtime: Runtime):
    stdin = os.urandom(frame.STDIN_MAX)
    with runtime.worker(reply(ANSWER)) as worker:
        done = subprocess.run(
            [runtime.binary], env=runtime.environment("ADD"), input=stdin, capture_output=True, check=True
        )
    assert done.stdout == b'{"cniVersion":"1.1.0"}'
    assert worker.requests[0].stdin == stdin


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_one_byte_more_is_an_error_and_never_cut(runtime: Runtime, command: str):
    with runtime.worker(reply(ANSWER)) as worker:
        error = error_of(runtime.call(command, b'{"cniVersion":"0.3.1"}' + b" " * (frame.STDIN_MAX - 21)))
    assert (error["code"], error["cniVersion"]) == (7, "0.3.1")
    assert "1 MiB" in error["msg"]
    assert worker.frames == []
    assert runtime.spooled() == []


def test_an_environment_above_the_limit_is_an_error(runtime: Runtime):
    half = "x" * (120 << 10)
    with runtime.worker(reply(ANSWER)) as worker:
        assert runtime.call("ADD", env={"CNI_A": half, "CNI_B": half}).returncode == 0
        error = error_of(runtime.call("ADD", env={"CNI_A": half, "CNI_B": half, "CNI_C": half}))
    assert error["code"] == 4
    assert len(worker.frames) == 1


def test_sixty_four_variables_pass_and_one_more_is_an_error(runtime: Runtime):
    most: dict[str, str | bytes | None] = {f"CNI_X{i}": "" for i in range(frame.ENTRIES_MAX - 3)}
    with runtime.worker(reply(ANSWER)) as worker:
        assert runtime.call("ADD", env=most).returncode == 0
        assert error_of(runtime.call("ADD", env={**most, "CNI_ONE_MORE": ""}))["code"] == 4
    assert len(worker.requests[0].env) == frame.ENTRIES_MAX


@pytest.mark.parametrize("deadline", ["soon", "0", "-1", "nan", "inf", "3601", "1s"])
def test_invalid_deadline_is_an_error(runtime: Runtime, deadline: str):
    error = error_of(runtime.call("ADD", env={"PLUMBLINE_DEADLINE": deadline}))
    assert error["code"] == 4
    assert deadline in error["msg"]


def test_too_long_socket_path_is_an_error(runtime: Runtime):
    assert error_of(runtime.call("DEL", env={"PLUMBLINE_SOCKET": "/" + "x" * 107}))["code"] == 4


def test_missing_command_is_explained(runtime: Runtime):
    error = error_of(runtime.call("ADD", env={"CNI_COMMAND": None}))
    assert error["code"] == 4
    assert "CNI_COMMAND" in error["msg"]


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_configuration_that_does_not_end_is_an_input_error(runtime: Runtime, command: str):
    read, write = os.pipe()
    try:
        os.write(write, b'{"cniVersion":"1.0.0",')
        env = {**runtime.environment(command), "PLUMBLINE_DEADLINE": "0.1"}
        done = subprocess.run([runtime.binary], env=env, stdin=read, capture_output=True, timeout=60, check=False)
    finally:
        os.close(read)
        os.close(write)
    assert error_of(done)["code"] == 5
    assert runtime.spooled() == []


def test_configuration_that_cannot_be_read_is_an_input_error(runtime: Runtime, tmp_path: Path):
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        done = subprocess.run(
            [runtime.binary], env=runtime.environment("ADD"), stdin=folder, capture_output=True, timeout=60, check=False
        )
    finally:
        os.close(folder)
    assert error_of(done)["code"] == 5


def test_closed_standard_output_raises_no_signal(runtime: Runtime):
    read, write = os.pipe()
    os.close(read)
    try:
        with runtime.worker(reply(ANSWER)):
            done = subprocess.run(
                [runtime.binary], env=runtime.environment("ADD"), stdin=subprocess.DEVNULL, stdout=write, check=False
            )
    finally:
        os.close(write)
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion":"0.3.1"}', "0.3.1"),
        (b' {\n "cniVersion" :\t"1.0.0" , "x":1}', "1.0.0"),
        (b'{"delegates":[{"cniVersion":"0.1.0"}],"cniVersion":"0.4.0"}', "0.4.0"),
        (b'{"delegates":[{"cniVersion":"0.1.0"}]}', "1.1.0"),
        (b'{"a":"\\"cniVersion\\":\\"0.2.0\\"","cniVersion":"0.4.0"}', "0.4.0"),
        (b'{"a":"\\"","cniVersion":"0.4.0"}', "0.4.0"),
        (b'{"a":"{\\\\","b":"}","cniVersion":"0.3.0"}', "0.3.0"),
        (b'{"name":"cniVersion","cniVersion":"0.2.0"}', "0.2.0"),
        (b'{"cniVersion":["0.1.0"],"x":{}}', "1.1.0"),
        (b'{"cniVersion":"' + b"1" * 16 + b'"}', "1" * 16),
        (b'{"cniVersion":"' + b"1" * 17 + b'"}', "1.1.0"),
        (b'{"cniVersion":"1.0\\u0022"}', "1.1.0"),
        (b'{"cniVersion":""}', "1.1.0"),
        (b'{"cniVersion":"1.0.0', "1.1.0"),
        (b'{"cniVersion', "1.1.0"),
        (b'{"cniVersio\\', "1.1.0"),
        (b"}}}", "1.1.0"),
        (b"", "1.1.0"),
        (b"\xff\xfe\0\x01", "1.1.0"),
    ],
)
def test_errors_are_in_the_version_that_was_asked_for(runtime: Runtime, stdin: bytes, version: str):
    with runtime.worker(reply(b"HTTP/1.1 400")):
        assert error_of(runtime.call("ADD", stdin))["cniVersion"] == version


def test_del_without_worker_returns_before_the_deadline(runtime: Runtime):
    start = time.monotonic()
    assert runtime.call("DEL").returncode == 0
    assert 1 <= time.monotonic() - start < 10
