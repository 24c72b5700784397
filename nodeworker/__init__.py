"""The worker, one per node: turns the intents in the node ledger into interfaces and answers the runtime."""

from events.process.hidden_imports import hidden

with hidden("rich"):  # the first import, by any module of the worker; rich is 3 MB, with pygments
    import structlog as structlog
