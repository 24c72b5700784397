"""The exit codes of all commands."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """How a command ended. One code has one meaning in every command."""

    DONE = 0
    """Done; for a check: all is as it should be."""
    FAILED = 1
    """Not found, or not possible; for a check: something differs."""
    WRONG = 2
    """Wrong usage, wrong configuration, or a file that can't be used."""
    IN_PART = 3
    """A part could not be done or checked; a sentence for each says which and why."""
    NO_LEDGER = 4
    """The ledger, or the database, does not answer."""
    BUSY = 5
    """Another process of Plumbline is in the way."""
    INTERRUPTED = 130
    """Interrupted by SIGINT."""
