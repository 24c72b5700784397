"""The entry point with sanitizers, against bytes that no worker sends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeworker.shim import frame
from tests.support.worker.shim_harness import Behaviour, Runtime, error_of, hang, reply, reply_bytewise, vanish

lengths = st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1))
headed = st.builds(
    lambda code, length, rest: frame.MAGIC + code.to_bytes(4, "little") + length.to_bytes(4, "little") + rest,
    st.one_of(st.integers(0, 3), lengths),
    lengths,
    st.binary(max_size=64),
)
replies = st.one_of(
    headed, headed.flatmap(lambda raw: st.integers(0, len(raw)).map(lambda n: raw[:n])), st.binary(max_size=64)
)


@pytest.fixture
def sanitized(sanitized_binary: Path, tmp_path: Path) -> Runtime:
    return Runtime(sanitized_binary, tmp_path)


def meaning(raw: bytes) -> tuple[int, bytes] | Literal["torn", "foreign"]:
    """Return exit code and output of the reply *raw* by the protocol's definition, or why it is invalid."""
    if not raw.startswith(frame.MAGIC[: len(raw)]):
        return "foreign"
    if len(raw) < 12:
        return "torn"
    code, length = int.from_bytes(raw[4:8], "little"), int.from_bytes(raw[8:12], "little")
    if length > frame.REPLY_MAX or code > 255 or (code and not length):
        return "foreign"
    return (code, raw[12 : 12 + length]) if len(raw) - 12 >= length else "torn"


@given(raw=replies, command=st.sampled_from(["ADD", "DEL", "STATUS"]), send=st.sampled_from([reply, reply_bytewise]))
@settings(max_examples=120)
def test_any_reply_is_printed_whole_or_refused(
    sanitized_binary: Path, raw: bytes, command: str, send: Callable[[bytes], Behaviour]
):
    expected = meaning(raw)
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(sanitized_binary, Path(folder), deadline=0.1 if expected == "torn" else 20)
        with runtime.worker(send(raw)):
            done = runtime.call(command, b'{"cniVersion":"1.0.0"}')
        if isinstance(expected, tuple):
            assert (done.returncode, done.stdout) == expected
            assert runtime.spooled() == []
        elif command == "DEL":
            assert (done.returncode, done.stdout) == (0, b"")
            assert len(runtime.spooled()) == 1
        else:
            error = error_of(done)
            assert (error["code"], error["cniVersion"]) == (11, "1.0.0")
            assert ("upgrade" in error["msg"]) == (expected == "foreign")


@given(stdin=st.one_of(st.binary(max_size=64), st.text('{}[]",:\\ 1.cniVersion', max_size=64).map(str.encode)))
@settings(max_examples=80)
def test_any_input_yields_a_valid_error_object(sanitized_binary: Path, stdin: bytes):
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(sanitized_binary, Path(folder))
        with runtime.worker(reply(b"HTTP/1.1 400")):
            assert error_of(runtime.call("ADD", stdin))["code"] == 11


def test_the_largest_request_and_reply(sanitized: Runtime):
    with sanitized.worker(reply(frame.encode_reply(0, b"x" * frame.REPLY_MAX))) as worker:
        env: dict[str, str | bytes | None] = {"CNI_A": "x" * (120 << 10), "CNI_B": "x" * (120 << 10)}
        assert len(sanitized.call("ADD", b'"' * frame.STDIN_MAX, env).stdout) == frame.REPLY_MAX
        assert error_of(sanitized.call("ADD", b"\\" * (frame.STDIN_MAX + 1)))["code"] == 7
    assert len(worker.frames) == 1


@pytest.mark.parametrize("behaviour", [hang, vanish, reply_bytewise(frame.encode_reply(1, b'{"code":11}'))])
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_lasting_failure_is_an_error_or_spooled(sanitized: Runtime, behaviour, command: str):
    with sanitized.worker(behaviour):
        done = sanitized.call(command, env={"PLUMBLINE_DEADLINE": "0.2"})
    assert (done.returncode == 1 and done.stdout) or (command == "DEL" and len(sanitized.spooled()) == 1)


@pytest.mark.parametrize("name", ["CNI_COMMAND", "PLUMBLINE_SOCKET", "PLUMBLINE_SPOOL", "PLUMBLINE_DEADLINE"])
def test_an_endless_setting_is_an_error(sanitized: Runtime, name: str):
    endless: dict[str, str | bytes | None] = {"PLUMBLINE_DEADLINE": "0.05", name: b'\x01"\xff' * 40000}
    assert error_of(sanitized.call("DEL", env=endless))["code"] in {4, 11}
