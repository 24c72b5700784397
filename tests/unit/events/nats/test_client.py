"""What Plumbline overrides of nats-py must give the same results as nats-py itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.nats.client.client import Client, _Parser
from events.nats.client.nats_py import Parser, errors

bodies = st.one_of(
    st.binary(max_size=40), st.just(b"MSG a 1 2\r\nhi\r\n"), st.just(b"\r\n"), st.binary(min_size=3000, max_size=3001)
)
replies = st.sampled_from([b"", b"_INBOX.x.1", b"$JS.ACK.NODE.reader.1.7.7.99.0"])
heads = st.sampled_from(
    [
        b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n",
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 3\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
    ]
)


class Handed(NamedTuple):
    sid: int
    subject: bytes
    reply: bytes
    body: bytes


class Queue:
    def __init__(self, client: Recording, sid: int) -> None:
        self._pending_queue = self
        self._client = client
        self._sid = sid

    def put_nowait(self, message: Any) -> None:
        given = message.subject.encode(), message.reply.encode(), message.data
        self._client.handed.append(Handed(self._sid, *given))


class Recording(Client):
    """Records what the parser delivers."""

    def __init__(self) -> None:
        super().__init__()
        self.handed: list[Handed | str] = []
        self._subs = {sid: Queue(self, sid) for sid in range(1, 4)}  # type: ignore[assignment]

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        self.handed.append(Handed(sid, bytes(subject), bytes(reply), bytes(data)))

    async def _process_ping(self) -> None:
        self.handed.append("ping")

    async def _process_err(self, err_msg: str) -> None:
        self.handed.append(err_msg)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["MSG", "HMSG", "PING\r\n", "+OK\r\n", "-ERR 'slow'\r\n"]))
    if kind.endswith("\r\n"):
        return kind.encode()
    reply, body, head = draw(replies), draw(bodies), draw(heads) if kind == "HMSG" else b""
    words = [kind.encode(), b"plumbline.a", str(draw(st.integers(1, 3))).encode(), *([reply] if reply else [])]
    sizes = [len(head), len(head) + len(body)] if head else [len(body)]
    return b" ".join([*words, *(str(size).encode() for size in sizes)]) + b"\r\n" + head + body + b"\r\n"


def parsed(kind: type[Any], pieces: Sequence[bytes]) -> list[Handed | str]:
    client = Recording()
    parser = kind(client)

    async def parse() -> None:
        for piece in pieces:
            await parser.parse(piece)

    asyncio.run(parse())
    return client.handed


@given(st.lists(frames(), max_size=8), st.lists(st.integers(0, 400), max_size=8))
def test_parser_delivers_as_upstream_in_any_pieces(sent: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(sent)
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)})
    pieces = [stream[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert parsed(_Parser, pieces) == parsed(Parser, [stream])


@pytest.mark.parametrize("frame", [b"MSG a 1 x\r\n", b"MSG a one 2\r\nhi\r\n", b"WHAT\r\n"])
def test_parser_refuses_bytes_that_are_no_frame(frame: bytes) -> None:
    with pytest.raises(errors.ProtocolError):
        parsed(_Parser, [frame])


async def test_publish_refuses_a_header_with_a_line_break() -> None:
    class Connected(Recording):
        is_connected = True  # type: ignore[assignment, override]

    client = Connected()
    client._transport = object()  # type: ignore[assignment]
    with pytest.raises(errors.BadHeaderError):
        await client._send_publish("a", "", b"", 0, {"Nats-Msg-Id": "1\r\nNats-Rollup: all"})
