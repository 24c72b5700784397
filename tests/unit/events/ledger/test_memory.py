"""The memory ledger's two switches, for tests of what others do without a ledger."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from events.ledger.ledger import LedgerFullError, LedgerUnavailableError
from events.ledger.memory import MemoryLedger
from events.schema import Stored
from tests.support.stories.lives import Teller


async def test_a_full_ledger_takes_nothing_new_and_still_knows_what_it_has() -> None:
    ledger, teller = MemoryLedger(), Teller()
    event = teller.note()
    await ledger.append(event)
    ledger.full = True
    with pytest.raises(LedgerFullError):
        await ledger.append(teller.note())
    assert await ledger.append(event) == 1
    assert [stored async for stored in ledger.read()] == [Stored(1, event)]
    ledger.full = False
    assert await ledger.append(teller.note()) == 2


async def test_a_ledger_that_is_away_answers_nothing_and_followers_wait_for_it() -> None:
    ledger, teller = MemoryLedger(), Teller()
    async with aclosing(ledger.follow()) as following:
        waiting = asyncio.ensure_future(anext(following))
        ledger.available = False
        for call in (
            ledger.append(teller.note()),
            ledger.last("plumbline.ev.>"),
            ledger.last_sequence(),
            ledger.purge(">", 1),
        ):
            with pytest.raises(LedgerUnavailableError):
                await call
        assert not waiting.done()
        ledger.available = True
        event = teller.note()
        await ledger.append(event)
        assert await waiting == Stored(1, event)


async def test_an_event_that_has_no_text_takes_no_sequence() -> None:
    """A lone surrogate can't be written as JSON."""
    ledger, teller = MemoryLedger(), Teller()
    with pytest.raises(ValueError, match="surrogates"):
        await ledger.append(teller.note("\ud800"))
    assert await ledger.append(teller.note()) == 1
