"""How a command ends that can't do what it was asked: with one sentence, and an exit code."""

from __future__ import annotations

import click


def refusal(error: Exception, code: int) -> SystemExit:
    """Say what *error* is about; return what to raise."""
    click.echo(f"plumbline: {_sentence(error)}", err=True)
    return SystemExit(code)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
