"""nats-py, without the 11 MB of aiohttp that it loads for WebSockets wherever that is installed.

Plumbline speaks to nats-server over TCP only, and every node pays for the worker's memory. So aiohttp looks absent
while nats-py is imported for the first time, and only then: the reconciler needs it for the API server. Whoever needs
nats-py takes it from here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

_hidden = "aiohttp" not in sys.modules
if _hidden:
    sys.modules["aiohttp"] = None  # type: ignore[assignment]  # what makes its import fail
try:
    from nats import errors
    from nats.aio.client import Client as _Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
finally:
    if _hidden:
        del sys.modules["aiohttp"]

__all__ = ["Client", "Msg", "Subscription", "errors"]


class Client(_Client):
    """nats-py's client, but what it has to send is written at once, and what it was sent is handed over at once.

    By itself it puts either into a queue, for a task to take out: that is four steps of the event loop for each event
    that is appended, and a third of what those cost.
    """

    async def listen(self, subject: str, deliver: Callable[[Msg], None]) -> Subscription:
        """Call *deliver*, which must not raise, with every message to *subject* as soon as it is read."""
        subscription = await self.subscribe(subject, pending_msgs_limit=0, pending_bytes_limit=0)
        subscription._pending_queue = _Handover(deliver)  # type: ignore[assignment]  # all that is done to it is put_nowait
        return subscription

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        if force_flush or self._transport is None or not self._pending or not self.is_connected:
            return await super()._flush_pending(force_flush)
        try:
            self._transport.writelines(self._pending)
        except (OSError, RuntimeError):  # what its own task takes for a lost connection
            return await super()._flush_pending()
        self._pending = []
        self._pending_data_size = 0
        return None


class _Handover:
    """Stands where a subscription has its queue."""

    def __init__(self, deliver: Callable[[Msg], None]) -> None:
        self.put_nowait = deliver
