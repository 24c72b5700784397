"""nats-py, imported without the 11 MB of aiohttp that it loads for WebSockets if aiohttp is installed.

Plumbline speaks to nats-server over TCP only, and every node pays for the worker's memory. So this module hides aiohttp
during the first import of nats-py, and only then: the reconciler needs aiohttp for the API server. All code of
Plumbline imports nats-py from here.
"""

from __future__ import annotations

import sys

_hidden = "aiohttp" not in sys.modules
if _hidden:
    sys.modules["aiohttp"] = None  # type: ignore[assignment]  # makes its import fail
try:
    from nats import errors
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.protocol.parser import Parser
finally:
    if _hidden:
        del sys.modules["aiohttp"]

__all__ = ["Client", "Msg", "Parser", "Subscription", "errors"]
