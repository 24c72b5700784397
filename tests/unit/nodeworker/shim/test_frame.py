from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.schema import RequestId
from nodeworker.shim import frame

keys = st.from_regex(r"CNI_[A-Z]{1,12}", fullmatch=True)
values = st.binary(max_size=64).map(lambda raw: raw.replace(b"\0", b"").decode(errors="surrogateescape"))
frames = st.builds(
    frame.Frame,
    request=st.binary(min_size=16, max_size=16).map(lambda raw: RequestId(raw.hex())),
    seconds_left=st.integers(0, 10**9).map(lambda milliseconds: milliseconds / 1000),
    env=st.dictionaries(keys, values, max_size=frame.ENTRIES_MAX),
    stdin=st.binary(max_size=512),
)

SAMPLE = frame.Frame(request=RequestId("00" * 15 + "ff"), seconds_left=1.5, env={"CNI_COMMAND": "ADD"}, stdin=b"{}")
SAMPLE_BYTES = (
    b"PLB1\x35\0\0\0" + b"\0" * 15 + b"\xff\xdc\x05\0\0\0\0\0\0\x01\0\0\0\x0f\0\0\0CNI_COMMAND=ADD\x02\0\0\0{}"
)


def test_layout_is_the_documented_one():
    assert frame.encode_request(SAMPLE) == SAMPLE_BYTES
    assert frame.encode_reply(1, b"{}") == b"PLB1\x01\0\0\0\x02\0\0\0{}"


@given(frames)
def test_an_encoded_message_is_decoded_again(sent: frame.Frame):
    assert frame.decode_frame(frame.encode_request(sent)) == sent


@given(frames, st.data())
def test_a_cut_frame_is_refused_wherever_it_is_cut(sent: frame.Frame, data: st.DataObject):
    whole = frame.encode_request(sent)
    with pytest.raises(frame.FrameError):
        frame.decode_frame(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(frame.FrameError):
        frame.decode_request(whole[frame.HEADER : -1])


@given(frames, st.data())
def test_a_damaged_frame_raises_nothing_but_frame_error(sent: frame.Frame, data: st.DataObject):
    damaged = bytearray(frame.encode_request(sent))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = frame.decode_frame(bytes(damaged))
    except frame.FrameError:
        return
    assert len(read.request) == 32


@given(st.binary(max_size=256))
def test_hostile_bytes_raise_nothing_but_frame_error(raw: bytes):
    for decode in (frame.decode_request, frame.decode_frame, frame.body_length):
        with contextlib.suppress(frame.FrameError):
            decode(raw)


def test_bytes_after_the_end_are_refused():
    with pytest.raises(frame.FrameError, match="1 bytes too many"):
        frame.decode_request(SAMPLE_BYTES[frame.HEADER :] + b"x")


def test_limits_are_inclusive():
    room = frame.REST_MAX - len(SAMPLE_BYTES) + frame.HEADER + len(SAMPLE.stdin)
    full = msgspec.structs.replace(SAMPLE, env={"CNI_COMMAND": "ADD" + "x" * room}, stdin=b" " * frame.STDIN_MAX)
    encoded = frame.encode_request(full)
    assert len(encoded) == frame.HEADER + frame.BODY_MAX
    assert frame.decode_frame(encoded) == full


@pytest.mark.parametrize(
    "change",
    [
        {"stdin": b" " * (frame.STDIN_MAX + 1)},
        {"env": {"CNI_ARGS": "x" * frame.REST_MAX}},
        {"env": {f"CNI_{i}": "" for i in range(frame.ENTRIES_MAX + 1)}},
        {"env": {"CNI_A=B": "C"}},
        {"env": {"": "x"}},
        {"env": {"CNI_ARGS": "\0"}},
        {"env": {"CNI_ARGS": "\ud800"}},
        {"env": {"CNI_ARGS": "\udcc3\udca9"}},
        {"request": RequestId("ab")},
        {"request": RequestId("AB" * 16)},
        {"request": RequestId("00" * 17)},
        {"request": RequestId("not hex")},
        {"seconds_left": -1.0},
        {"seconds_left": float("nan")},
        {"seconds_left": float("inf")},
        {"seconds_left": 1e30},
    ],
)
def test_an_impossible_request_is_not_encoded(change: dict[str, object]):
    with pytest.raises(frame.FrameError):
        frame.encode_request(msgspec.structs.replace(SAMPLE, **change))


def test_first_of_two_equal_variables_counts():
    entries = [b"CNI_COMMAND=DEL", b"CNI_COMMAND=ADD"]
    body = bytes(24) + b"\x02\0\0\0" + b"".join(b"\x0f\0\0\0" + entry for entry in entries) + bytes(4)
    assert frame.decode_request(body).env == {"CNI_COMMAND": "DEL"}


@pytest.mark.parametrize("length", [frame.BODY_MAX + 1, 2**32 - 1])
def test_a_body_longer_than_the_limit_is_refused_before_it_is_read(length: int):
    with pytest.raises(frame.FrameError, match=str(length)):
        frame.body_length(frame.MAGIC + length.to_bytes(4, "little"))


def test_wrong_magic_error_names_the_release():
    with pytest.raises(frame.FrameError, match="different releases"):
        frame.body_length(b"PLB2\0\0\0\0")


@pytest.mark.parametrize(("code", "stdout"), [(1, b""), (-1, b"x"), (256, b"x"), (0, bytes(frame.REPLY_MAX + 1))])
def test_a_reply_that_the_entry_point_would_refuse_is_not_encoded(code: int, stdout: bytes):
    with pytest.raises(frame.FrameError):
        frame.encode_reply(code, stdout)
