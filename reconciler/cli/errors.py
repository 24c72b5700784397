"""End a command that failed: with one sentence and the exit code of its error."""

from __future__ import annotations

import click

from events.exit_codes import ExitCode
from events.ledger.ledger import LedgerError
from events.process.settings import SettingsError


def exit_with(error: Exception, code: ExitCode | None = None) -> SystemExit:
    """Print *error*; return the exception to raise, by default with the code of the kind of *error*."""
    click.echo(f"plumbline: {_sentence(error)}", err=True)
    return SystemExit(_code(error) if code is None else code)


def _code(error: Exception) -> ExitCode:
    if isinstance(error, SettingsError):
        return error.exit_code
    if isinstance(error, LedgerError):
        return ExitCode.NO_LEDGER
    return ExitCode.WRONG if isinstance(error, OSError) else ExitCode.FAILED


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
