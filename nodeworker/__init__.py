"""The worker, one per node: turns the intents in the node ledger into interfaces and answers the runtime."""

import contextlib

from events.process.hidden_imports import hidden

# The first import, by any module of the worker; rich is 3 MB, with pygments. The wheel's build hook has no structlog.
with hidden("rich"), contextlib.suppress(ModuleNotFoundError):
    import structlog as structlog
