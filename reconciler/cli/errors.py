"""End a command that failed: with one sentence and an exit code."""

from __future__ import annotations

import click


def exit_with(error: Exception, code: int) -> SystemExit:
    """Print *error*; return the exception to raise."""
    click.echo(f"plumbline: {_sentence(error)}", err=True)
    return SystemExit(code)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
