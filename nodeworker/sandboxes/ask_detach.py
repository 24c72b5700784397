"""Ask for a DEL that no runtime asked for: for whoever finds that a sandbox is to go."""

from __future__ import annotations

import secrets

from events.fold import Sandbox
from events.ledger.ledger import ConflictError
from events.schema import DetachRequested, EventId, RequestId
from nodeworker.journal.journal import Journal
from nodeworker.sandboxes.answers import Answers, Reply


async def ask_detach(
    journal: Journal, answers: Answers, sandbox: Sandbox, cause: EventId, *, last: int | None = None
) -> Reply:
    """Return what came of a DEL of *sandbox*, which is an intent like a runtime's, and takes its turn like one.

    With *last* it is only asked for if that is the sequence of the newest event of the container. Raises LedgerError,
    ConflictError among them.
    """
    request = RequestId(secrets.token_hex(16))
    answers.open(request)
    intent = DetachRequested(request=request, ifname=sandbox.key.ifname, netns=sandbox.netns, pod=sandbox.pod)
    try:
        await journal.request(journal.event(intent, sandbox.key.container_id, cause), last=last)
    except ConflictError:
        answers.cancel(request)
        raise
    return await answers.wait(request)
