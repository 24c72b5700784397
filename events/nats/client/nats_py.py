"""nats-py, imported without the 11 MB of aiohttp that it loads for WebSockets if aiohttp is installed.

Plumbline speaks to nats-server over TCP only. All code of Plumbline imports nats-py from here.
"""

from __future__ import annotations

from events.process.hidden_imports import hidden

with hidden("aiohttp"):
    from nats import errors
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.protocol.parser import Parser

__all__ = ["Client", "Msg", "Parser", "Subscription", "errors"]
