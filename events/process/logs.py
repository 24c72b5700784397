"""One logger setup for every process: readable lines on a terminal, logfmt or JSON for programs.

The environment variable ``PLUMBLINE_LOG_FORMAT`` chooses. Without it, a terminal gets ``console`` and a pipe or file
gets ``logfmt``.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import structlog
from structlog.dev import Column, ConsoleRenderer, KeyValueColumnFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from events.process.settings import SettingsError

FORMAT_VARIABLE = "PLUMBLINE_LOG_FORMAT"
AUTO, CONSOLE, LOGFMT, JSON = "auto", "console", "logfmt", "json"

Copy: TypeAlias = Callable[[int, str], None]
"""Takes a level of ``logging`` and a line."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_FIRST_KEYS = ("timestamp", "level", "process", "event")
_RESET, _DIM, _BOLD, _RED, _YELLOW, _CYAN = "\x1b[0m", "\x1b[2m", "\x1b[1m", "\x1b[31m", "\x1b[33m", "\x1b[36m"
_copy: ContextVar[Copy | None] = ContextVar("log_copy", default=None)


def configure(level: str, process: str) -> None:
    """Log to standard error from *level* on; *process* names the writer in every line.

    Raises SettingsError for an unknown format.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            lambda _logger, _name, entry: {**entry, "process": process},
            structlog.processors.format_exc_info,
            _rounded,
            _Renderer(chosen_format()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


@contextmanager
def about(pod: object, sandbox: str) -> Generator[None]:
    """Name *pod* and *sandbox* in each line that the block and the tasks that it starts log.

    A task that goes on with the work of others needs a context of its own (``contextvars.Context()``).
    """
    with structlog.contextvars.bound_contextvars(pod=str(pod), sandbox=sandbox[:12]):
        yield


def sentences(error: BaseException) -> str:
    """Return the text of *error*, or, of a group, those of all its errors."""
    return "; ".join(map(sentences, error.exceptions)) if isinstance(error, BaseExceptionGroup) else str(error)


def configure_command(level: str) -> None:
    """Log errors only, unless *level* is ``debug``: a command says in a sentence why it failed."""
    configure("debug" if level == "debug" else "error", "cli")


def chosen_format() -> str:
    """Return ``console``, ``logfmt`` or ``json``: what the environment asks for, else what fits standard error.

    Raises SettingsError for an unknown value.
    """
    chosen = os.environ.get(FORMAT_VARIABLE) or AUTO
    if chosen == AUTO:
        return CONSOLE if sys.stderr.isatty() else LOGFMT
    if chosen not in (CONSOLE, LOGFMT, JSON):
        raise SettingsError(f"{FORMAT_VARIABLE} is {chosen!r}, not one of auto, console, logfmt, json")
    return chosen


@contextmanager
def copied(to: Copy) -> Generator[None]:
    """Pass a copy of every line that this context logs inside the block to *to*.

    The copy is logfmt, or JSON where the log is JSON: a log file is for programs, whatever the terminal shows.
    """
    token = _copy.set(to)
    try:
        yield
    finally:
        _copy.reset(token)


def _rounded(_logger: WrappedLogger, _name: str, entry: EventDict) -> EventDict:
    """Round numbers to the microsecond: most are seconds, and more digits say nothing."""
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in entry.items()}


class _Renderer:
    """The last processor: makes the line, and a copy of it where ``copied`` asks for one."""

    def __init__(self, chosen: str) -> None:
        self._for_programs: Processor = _json if chosen == JSON else _render_logfmt
        self._console: Processor | None = _console(colors=_shows_colors()) if chosen == CONSOLE else None

    def __call__(self, logger: WrappedLogger, method: str, entry: EventDict) -> str:
        copy = _copy.get()
        if copy is None and self._console is not None:
            return self._line(self._console, logger, method, entry)
        line = self._line(self._for_programs, logger, method, dict(entry))
        if copy is not None:
            copy(_LEVELS.get(method, logging.ERROR), line)
        return line if self._console is None else self._line(self._console, logger, method, entry)

    @staticmethod
    def _line(render: Processor, logger: WrappedLogger, method: str, entry: EventDict) -> str:
        line = render(logger, method, entry)
        assert isinstance(line, str)
        return line


_render_logfmt = structlog.processors.LogfmtRenderer(key_order=_FIRST_KEYS)
_render_json = structlog.processors.JSONRenderer()


def _json(logger: WrappedLogger, method: str, entry: EventDict) -> str | bytes:
    first = {key: entry.pop(key) for key in _FIRST_KEYS if key in entry}
    return _render_json(logger, method, {**first, **entry})


def _shows_colors() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def _console(*, colors: bool) -> Processor:
    """Return a renderer of lines such as ``17:36:43 worker  request_done  command=ADD pod=default/web``."""

    def column(style: str, width: int = 0, *, value: Callable[[object], str] = str) -> KeyValueColumnFormatter:
        return KeyValueColumnFormatter(None, style if colors else "", _RESET if colors else "", value, width)

    def level(key: str, value: object) -> str:
        """Name only the levels above info, so that they stand out."""
        if value not in ("warning", "error", "critical"):
            return ""
        return column(_YELLOW if value == "warning" else _RED, value=lambda text: str(text).upper())(key, value)

    others = KeyValueColumnFormatter(_DIM if colors else "", "", _RESET if colors else "", _value)
    return ConsoleRenderer(
        sort_keys=False,
        columns=[
            Column("", others),
            Column("timestamp", column(_DIM, value=lambda _: time.strftime("%H:%M:%S"))),
            Column("process", column(_CYAN, 10)),
            Column("level", level),
            Column("event", column(_BOLD)),
        ],
    )


def _value(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f'"{text}"' if " " in text else text
