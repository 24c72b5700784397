"""``python -m reconciler.verify``: one verification in a separate process; the report is JSON on standard output."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

import msgspec

from events.exit_codes import ExitCode
from events.ledger.ledger import LedgerError
from events.process import logs
from events.process.settings import SettingsError, add_config_option, load
from reconciler.settings import ReconcilerSettings
from reconciler.verify.run import verify_configured


def main() -> int:
    """Print the report; return the exit code of ``plumbline verify``."""
    parser = argparse.ArgumentParser(prog="python -m reconciler.verify", description=__doc__)
    add_config_option(parser)
    path = parser.parse_args().config
    os.nice(10)
    try:
        settings = load(path, ReconcilerSettings)
        logs.configure("warning", "verify")
        report = asyncio.run(verify_configured(settings))
    except (SettingsError, LedgerError) as error:
        print(f"plumbline: {error}", file=sys.stderr)  # noqa: T201  # also without a configured log
        return error.exit_code if isinstance(error, SettingsError) else ExitCode.NO_LEDGER
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
