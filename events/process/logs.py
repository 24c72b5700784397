"""One logger setup for every process: a line an event, its name first, then key=value pairs in a stable order."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import structlog
from structlog.typing import EventDict, WrappedLogger

Copy: TypeAlias = Callable[[int, str], None]
"""Takes a level of ``logging`` and a line."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_render = structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "process", "event"])
_copy: ContextVar[Copy | None] = ContextVar("log_copy", default=None)


def configure(level: str, process: str) -> None:
    """Log to standard error from *level* on; *process* names the writer in every line."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            lambda _logger, _name, entry: {**entry, "process": process},
            structlog.processors.format_exc_info,
            _rendered,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


@contextmanager
def copied(to: Copy) -> Generator[None]:
    """Hand *to* a copy of every line that is logged in this context meanwhile."""
    token = _copy.set(to)
    try:
        yield
    finally:
        _copy.reset(token)


def _rendered(logger: WrappedLogger, level: str, entry: EventDict) -> str:
    line = _render(logger, level, entry)
    if (copy := _copy.get()) is not None:
        copy(_LEVELS.get(level, logging.ERROR), line)
    return line
