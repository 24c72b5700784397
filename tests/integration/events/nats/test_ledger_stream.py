"""The stream of the ledger: its configuration, what refuses access to it, and what its subjects match."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from events.ledger.ledger import ConflictError, Expect, LedgerError, LedgerUnavailableError
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.nats.streams import NODE_STREAM, StreamConfig
from events.process.settings import LedgerAddress
from events.subjects import matches
from tests.support.nats.jetstream import everything, fill, raw_client
from tests.support.stories.events import EventFactory


async def test_stream_is_updated_only_if_it_differs(server: EmbeddedServer) -> None:
    advice: list[str] = []

    async def note(message: Any) -> None:
        advice.append(message.subject.split(".")[4])

    async with raw_client(server) as client:
        await client.subscribe("$JS.EVENT.ADVISORY.STREAM.*.NODE", cb=note)
        await client.flush()
        for config in (NODE_STREAM, NODE_STREAM, StreamConfig(name="NODE", max_age=3_600_000_000_000), NODE_STREAM):
            ledger = await JetStreamLedger.connect(server.address, config=config)
            await ledger.close()
        await client.flush()
    assert advice == ["CREATED", "UPDATED", "UPDATED"]


async def test_refused_stream_configuration_names_the_reason(server: EmbeddedServer) -> None:
    for config in (StreamConfig(name="NODE"), StreamConfig(name="OTHER")):
        try:
            ledger = await JetStreamLedger.connect(server.address, config=config)
        except LedgerError as error:
            assert "refused the stream OTHER: subjects overlap" in str(error)  # noqa: PT017  # the first must not raise
        else:
            assert config.name == "NODE"
            await ledger.close()


async def test_deleted_stream_is_an_error_not_an_empty_ledger(jetstream: JetStreamLedger) -> None:
    await fill(jetstream, 1)
    await jetstream.api("STREAM.DELETE.NODE", {})
    for call in (jetstream.last_sequence(), jetstream.last("plumbline.ev.>"), everything(jetstream)):
        with pytest.raises(LedgerUnavailableError, match="stream not found"):
            await call


async def test_wrong_token_is_explained(server: EmbeddedServer) -> None:
    async with asyncio.timeout(3):
        with pytest.raises(LedgerError, match="rejects the token"):
            await JetStreamLedger.connect(LedgerAddress(server.url, "wrong"))
        with pytest.raises(LedgerError, match="rejects the token"):
            await JetStreamLedger.connect(LedgerAddress(server.url))


async def test_invalid_address_is_explained() -> None:
    with pytest.raises(LedgerError, match="there is no ledger at 'nats://"):
        await JetStreamLedger.connect(LedgerAddress("nats://[::1"))


async def test_time_of_each_append_is_observed(server: EmbeddedServer) -> None:
    seconds: list[float] = []
    ledger = await JetStreamLedger.connect(server.address, observe_ack=seconds.append)
    await fill(ledger, 5)
    assert len(seconds) == 5
    assert all(0 < each < 2 for each in seconds)
    await ledger.close()


async def test_conflict_has_the_servers_reason(jetstream: JetStreamLedger) -> None:
    await fill(jetstream, 3)
    with pytest.raises(ConflictError, match="wrong last sequence: 3"):
        await jetstream.append(EventFactory("x").note(), Expect("plumbline.ev.>", 2))


_SUBJECTS = [
    "plumbline.ev.n.s.X",
    "plumbline.ev.n.-.X",
    "plumbline.ev.n.s",
    "plumbline.ev.n.s.X.y",
    "plumbline.ev",
    "plumbline",
]


_PATTERNS = [
    ">",
    "*",
    "plumbline.>",
    "plumbline.ev.>",
    "plumbline.ev",
    "plumbline.ev.*",
    "plumbline.ev.*.*.*",
    "plumbline.ev.n.*.X",
    "plumbline.*.n.s.X",
    "plumbline.ev.n.s.X",
    "plumbline.ev.n.s.X.>",
    "plumbline.ev.n.-.>",
    "plumbline.ev.N.s.X",
    "*.*",
    "*.>",
]


async def test_memory_ledger_matches_subjects_as_the_server_does(server: EmbeddedServer) -> None:
    got: set[tuple[str, str]] = set()
    async with raw_client(server) as client:
        for pattern in _PATTERNS:

            async def note(message: Any, pattern: str = pattern) -> None:
                got.add((message.subject, pattern))

            await client.subscribe(pattern, cb=note)
        for subject in _SUBJECTS:
            await client.publish(subject, b"")
        await client.flush()
        await client.drain()
    matched = {(subject, pattern) for subject, pattern in got if subject in _SUBJECTS}
    assert matched == {(s, p) for s in _SUBJECTS for p in _PATTERNS if matches(s, p)}
