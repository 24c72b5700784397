"""Make one sentence of what a failed plugin printed, for people and runtimes.

Pure.
"""

from __future__ import annotations

import re
import signal
from typing import Any, Final, NamedTuple, cast

import msgspec

from events.schema import PluginRun

MESSAGE_LIMIT: Final = 1024
DETAILS_LIMIT: Final = 4096
"""Characters of a plugin's own text that are passed on."""

_READ_AS_SUCCESS: Final = (
    (re.compile("not found", re.IGNORECASE), "missing"),
    (re.compile("no such file", re.IGNORECASE), "missing file"),
)

_CRASHES: Final = ("panic: ", "fatal error: ")
"""How the Go runtime begins the line with the reason, which many lines follow."""

_CUT_SHORT: Final = re.compile(rf"ended by |exit code \d+: (?:{'|'.join(_CRASHES)})|plugin \S+ .* and was killed$")


class Complaint(NamedTuple):
    """Why a plugin failed, in its own words if it gave any."""

    code: int
    """0 when it gave none."""
    message: str
    details: str


def complaint(run: PluginRun, stdout: bytes) -> Complaint:
    """Return why a plugin ended with an exit code that is not zero.

    The overview of the CNI specification 1.1 puts the error object on standard error; plugins and runtimes agree on
    standard output.
    """
    report = _report(stdout)
    message, details, code = report.get("msg"), report.get("details"), report.get("code")
    if not isinstance(message, str) or not message.strip():
        return Complaint(0, f"{_ending(run.exit_code)}: {_last_words(run)}", "")
    return Complaint(
        code if isinstance(code, int) and code > 0 else 0,
        _brief(message, MESSAGE_LIMIT),
        _brief(details, DETAILS_LIMIT) if isinstance(details, str) else "",
    )


def cut_short(reason: str) -> bool:
    """Return whether a plugin that failed for *reason* crashed or was killed, and may have done half of its task."""
    return _CUT_SHORT.match(reason) is not None


def not_read_as_success(text: str) -> str:
    """Return *text* without the words that make containerd take a failed DEL for a success."""
    for words, others in _READ_AS_SUCCESS:
        text = words.sub(others, text)
    return text


def _report(stdout: bytes) -> dict[str, Any]:
    try:
        report = msgspec.json.decode(stdout)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {}
    return cast("dict[str, Any]", report) if isinstance(report, dict) else {}


def _last_words(run: PluginRun) -> str:
    """Return the line that says why the plugin ended: the last one, or of a Go program's crash the first."""
    lines = (run.stderr.strip() or run.stdout.strip()).splitlines()
    crash = next((line for line in lines if line.startswith(_CRASHES)), "")
    return _brief(crash or lines[-1], MESSAGE_LIMIT) if lines else "it gave no reason"


def _ending(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"ended by signal {-exit_code}"


def _brief(text: str, limit: int) -> str:
    """Return *text* on one line of at most *limit* characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
