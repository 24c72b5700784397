"""Log each request: in the worker's log, and in the file that its configuration names; warn of unknown keys."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import structlog

from events.process import logs
from nodeworker.intake.log_files import LogFiles
from nodeworker.planning.resolve.netconf import NodeDefaults, logging_of, unknown_netconf_keys
from nodeworker.plugins.spec.cni_args import pod_of
from nodeworker.sandboxes.answers import Reply
from nodeworker.shim.frame import Frame

log = structlog.get_logger(__name__)

_LEVELS = {"panic": logging.CRITICAL, "error": logging.WARNING, "verbose": logging.INFO, "debug": logging.DEBUG}
"""Multus' levels. A failed request is only a warning of the worker, which worked as designed."""
_QUESTIONS = frozenset({"CHECK", "STATUS", "VERSION"})
"""Commands that runtimes repeat all the time: only a failure is logged at level info or above."""


class RequestLog:
    """Logs requests in the worker's log, and in the log files of their configurations."""

    def __init__(self, defaults: NodeDefaults, files: LogFiles) -> None:
        self._defaults = defaults
        self._files = files
        self._warned: set[str] = set()

    def warn_of_keys(self, keys: Iterable[str], where: str) -> None:
        """Warn once of each unknown key in *keys*; *where* names their configuration for people."""
        for key in keys:
            if key not in self._warned:
                self._warned.add(key)
                log.warning("unknown_configuration_key", key=key, where=where)

    def done(self, frame: Frame, reply: Reply, seconds: float) -> None:
        """Log that *frame* was answered with *reply* after *seconds*."""
        config = frame.config
        self.warn_of_keys(unknown_netconf_keys(config), "the runtime's configuration")
        settings = logging_of(config, self._defaults)
        if not settings.log_file:
            _log_request(frame, reply, seconds)
            return
        least = _LEVELS.get(settings.log_level.lower(), logging.INFO)

        def copy(level: int, line: str) -> None:
            if level >= least:
                self._files.write(settings.log_file, settings.log_options, line)

        with logs.copied(copy):
            _log_request(frame, reply, seconds)


def _log_request(frame: Frame, reply: Reply, seconds: float) -> None:
    env, failure = frame.env, reply.failure
    command = env.get("CNI_COMMAND", "")
    fields = {
        "command": command,
        "pod": str(pod_of(env.get("CNI_ARGS", ""))),
        "sandbox": env.get("CNI_CONTAINERID", "")[:12],
        "ifname": env.get("CNI_IFNAME", ""),
        "seconds": round(seconds, 4),
    }
    if failure is not None:
        log.warning("request_failed", **fields, error_class=failure.error_class.value, error=failure.message)
    elif command in _QUESTIONS:
        log.debug("request_done", **fields)
    else:
        log.info("request_done", **fields)
