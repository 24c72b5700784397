"""nats-py, without the 11 MB of aiohttp that it loads for WebSockets wherever that is installed.

Plumbline speaks to nats-server over TCP only, and every node pays for the worker's memory. So aiohttp looks absent
while nats-py is imported for the first time, and only then: the reconciler needs it for the API server. Whoever needs
nats-py takes it from here.
"""

from __future__ import annotations

import sys

_hidden = "aiohttp" not in sys.modules
if _hidden:
    sys.modules["aiohttp"] = None  # type: ignore[assignment]  # what makes its import fail
try:
    from nats import errors
    from nats.aio.client import Client
    from nats.aio.msg import Msg
finally:
    if _hidden:
        del sys.modules["aiohttp"]

__all__ = ["Client", "Msg", "errors"]
