"""The log files that network configurations name with ``logFile``: a site may collect its CNI logs there.

They are copies of lines in the worker's own log. An unusable file is reported there, once, and fails no request.
"""

from __future__ import annotations

import logging
import os
import time
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType

import structlog

from nodeworker.planning.resolve.netconf import LogOptions

log = structlog.get_logger(__name__)

_MEGABYTE = 1 << 20
_DAY = 86400.0


class LogFiles:
    """The open log files; configurations with the same path share one."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[LogOptions, _RotatingFile]] = {}
        self._unusable: set[str] = set()

    def __enter__(self) -> LogFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, file in self._files.values():
            file.close()
        self._files.clear()

    def write(self, path: str, options: LogOptions, line: str) -> None:
        """Append *line* to the file *path*, rotated as *options* say. Creates the file and its folder."""
        try:
            self._file(path, options).handle(logging.makeLogRecord({"msg": line}))
        except (OSError, ValueError) as error:
            if path not in self._unusable:
                self._unusable.add(path)
                log.warning("log_file_unusable", file=path, error=str(error))
        else:
            self._unusable.discard(path)

    def _file(self, path: str, options: LogOptions) -> _RotatingFile:
        opened = self._files.get(path)
        if opened is not None and opened[0] == options:
            return opened[1]
        if not os.path.isabs(path):
            raise ValueError("it is not an absolute path")
        if opened is not None:
            opened[1].close()
        file = _RotatingFile(path, options)
        self._files[path] = options, file
        return file


class _RotatingFile(RotatingFileHandler):
    """A file that only its owner may read: network configurations can contain secrets."""

    def __init__(self, path: str, options: LogOptions) -> None:
        super().__init__(
            path,
            maxBytes=max(1, options.max_size) * _MEGABYTE,
            backupCount=max(1, options.max_backups),
            encoding="utf-8",
            delay=True,
            errors="backslashreplace",
        )
        self._max_age = options.max_age * _DAY

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=_open_private)

    def doRollover(self) -> None:  # noqa: N802  # overrides the handler's method
        """Rotate the file, and remove rotated files that are too old."""
        super().doRollover()
        oldest = time.time() - self._max_age
        for number in range(1, self.backupCount + 1):
            aside = Path(f"{self.baseFilename}.{number}")
            if self._max_age > 0 and aside.exists() and aside.stat().st_mtime < oldest:
                aside.unlink()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # overrides the handler's method
        """Raise the error in the caller."""
        raise  # noqa: PLE0704  # logging calls this method while it handles the exception


def _open_private(path: str, flags: int) -> int:
    # O_NONBLOCK: a FIFO without a reader is an error instead of a blocked worker.
    return os.open(path, flags | os.O_NONBLOCK, mode=0o600)
