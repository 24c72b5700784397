"""The two switches of the memory ledger: full, and unavailable."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from events.ledger.ledger import LedgerFullError, LedgerUnavailableError
from events.ledger.memory import MemoryLedger
from events.schema import Stored
from tests.support.stories.events import EventFactory


async def test_full_ledger_refuses_new_events_and_knows_old_ones() -> None:
    ledger, factory = MemoryLedger(), EventFactory()
    event = factory.note()
    await ledger.append(event)
    ledger.full = True
    with pytest.raises(LedgerFullError):
        await ledger.append(factory.note())
    assert await ledger.append(event) == 1
    assert [stored async for stored in ledger.read()] == [Stored(1, event)]
    ledger.full = False
    assert await ledger.append(factory.note()) == 2


async def test_unavailable_ledger_raises_and_followers_wait() -> None:
    ledger, factory = MemoryLedger(), EventFactory()
    async with aclosing(ledger.follow()) as following:
        waiting = asyncio.ensure_future(anext(following))
        ledger.available = False
        for call in (
            ledger.append(factory.note()),
            ledger.last("plumbline.ev.>"),
            ledger.last_sequence(),
            ledger.purge(">", 1),
        ):
            with pytest.raises(LedgerUnavailableError):
                await call
        assert not waiting.done()
        ledger.available = True
        event = factory.note()
        await ledger.append(event)
        assert await waiting == Stored(1, event)


async def test_event_that_can_not_be_encoded_takes_no_sequence() -> None:
    """A lone surrogate can't be written as JSON."""
    ledger, factory = MemoryLedger(), EventFactory()
    with pytest.raises(ValueError, match="surrogates"):
        await ledger.append(factory.note("\ud800"))
    assert await ledger.append(factory.note()) == 1
