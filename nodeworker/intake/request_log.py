"""What a request leaves in the log: a line, also in the file that its configuration names; a word on unknown keys."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import structlog

from events.process import logs
from nodeworker.intake.log_files import LogFiles
from nodeworker.planning.resolve.netconf import NodeDefaults, logging_of, unknown_to_us
from nodeworker.plugins.spec.cni_args import pod_of
from nodeworker.sandboxes.answers import Reply
from nodeworker.shim.frame import Frame

log = structlog.get_logger(__name__)

_LEVELS = {"panic": logging.CRITICAL, "error": logging.WARNING, "verbose": logging.INFO, "debug": logging.DEBUG}
"""Multus' levels. A request that failed is a warning of the worker, which did what it should."""
_QUESTIONS = frozenset({"CHECK", "STATUS", "VERSION"})
"""Asked all the time; only a failure is worth a line."""


class RequestLog:
    """Tells of requests in the worker's log, and where their configurations want it told."""

    def __init__(self, defaults: NodeDefaults, files: LogFiles) -> None:
        self._defaults = defaults
        self._files = files
        self._told: set[str] = set()

    def warn_of_keys(self, keys: Iterable[str], where: str) -> None:
        """Say of each of *keys*, once, that nobody knows it; *where* it stands is for people."""
        for key in keys:
            if key not in self._told:
                self._told.add(key)
                log.warning("unknown_configuration_key", key=key, where=where)

    def done(self, frame: Frame, reply: Reply, seconds: float) -> None:
        """Tell that *frame* was answered with *reply* after *seconds*."""
        config = frame.config
        self.warn_of_keys(unknown_to_us(config), "the runtime's configuration")
        wishes = logging_of(config, self._defaults)
        if not wishes.log_file:
            _tell(frame, reply, seconds)
            return
        least = _LEVELS.get(wishes.log_level.lower(), logging.INFO)

        def copy(level: int, line: str) -> None:
            if level >= least:
                self._files.write(wishes.log_file, wishes.log_options, line)

        with logs.copied(copy):
            _tell(frame, reply, seconds)


def _tell(frame: Frame, reply: Reply, seconds: float) -> None:
    env, failure = frame.env, reply.failure
    command = env.get("CNI_COMMAND", "")
    about = {
        "command": command,
        "pod": str(pod_of(env.get("CNI_ARGS", ""))),
        "sandbox": env.get("CNI_CONTAINERID", "")[:12],
        "ifname": env.get("CNI_IFNAME", ""),
        "seconds": round(seconds, 4),
    }
    if failure is not None:
        log.warning("request_failed", **about, error_class=failure.error_class.value, error=failure.message)
    elif command in _QUESTIONS:
        log.debug("request_done", **about)
    else:
        log.info("request_done", **about)
