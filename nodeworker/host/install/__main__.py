"""The process behind ``plumbline install`` and ``plumbline uninstall``."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from events.exit_codes import ExitCode
from events.ledger.ledger import LedgerError
from events.process import logs
from events.process.settings import InstallSection, Settings, SettingsError, add_config_option, load
from nodeworker import shim
from nodeworker.host.install import InstallError, entry_point
from nodeworker.host.install.installer import Installer, install, watch

_WAIT = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Install or uninstall; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        settings = load(options.config, Settings)
        section = _section(settings.install or InstallSection(), options)
        logs.configure(settings.log_level, options.command)
        return options.run(settings, section, options)
    except SettingsError as error:
        return _say(error, error.exit_code)
    except InstallError as error:
        return _say(error, ExitCode.FAILED)


def _install(settings: Settings, section: InstallSection, options: argparse.Namespace) -> int:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        binary = options.entry_point or shim.binary()
    except (FileNotFoundError, RuntimeError) as error:
        raise InstallError(str(error)) from error
    installer = Installer(settings, section, binary)
    if options.watch:
        watch(installer, Path(section.cni_bin_dir) / entry_point.NAME, stop)
    elif options.binary_only:
        installer.resume()
        installer.install_entry_point()
    else:
        install(installer, options.wait, stop)
    return 0


def _uninstall(settings: Settings, section: InstallSection, options: argparse.Namespace) -> int:
    # This module loads the ledger's client. A watching installer runs on every node and does not need that memory.
    from nodeworker.host.install.uninstall import BinaryKeptError, Uninstaller  # noqa: PLC0415

    try:
        asyncio.run(Uninstaller(settings, section, force=options.force).run())
    except BinaryKeptError as error:
        return _say(error, ExitCode.IN_PART)
    except LedgerError as error:
        return _say(error, ExitCode.NO_LEDGER)
    return 0


def _section(section: InstallSection, options: argparse.Namespace) -> InstallSection:
    """Return *section*, with the command line's options first. Raises SettingsError."""
    options_set: dict[str, Any] = {
        name: value for name in section.__struct_fields__ if (value := getattr(options, name, None)) is not None
    }
    if file := getattr(options, "network_json", None):
        options_set["network"] = _keys(file)
    try:
        return replace(section, **options_set)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _keys(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not a JSON object: {error}") from error


def _say(error: Exception, exit_code: ExitCode) -> int:
    sys.stderr.write(f"plumbline: {error}\n")
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="plumbline", allow_abbrev=False)
    add_config_option(parser)
    commands = parser.add_subparsers(dest="command", required=True)

    add = commands.add_parser(
        "install",
        allow_abbrev=False,
        description="Copy the entry point into the runtime's plugin folder and, once the worker answers, write a "
        "configuration that calls it for the node's default network. Defaults of the options are in the configuration "
        "file's section install. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.",
    )
    _folders(add)
    add.add_argument("--cni-autoconf-dir", metavar="DIR", help="folder of the default network's configuration")
    add.add_argument("--master-file-name", metavar="NAME", help="file name of it; default: the first by name")
    add.add_argument("--network-name", metavar="NAME", help="of our configuration; default: the default network's")
    add.add_argument("--network-json", metavar="FILE", type=Path, help="Multus' keys, for our configuration")
    add.add_argument("--replace-multus", action="store_true", default=None, help="replace Multus' configuration")
    add.add_argument("--entry-point", metavar="FILE", type=Path, help="another build of the entry point")
    add.add_argument("--wait", metavar="SECONDS", type=float, default=_WAIT, help="for the worker (%(default)g)")
    mode = add.add_mutually_exclusive_group()
    mode.add_argument("--binary-only", action="store_true", help="do not change the configuration")
    mode.add_argument("--watch", action="store_true", help="keep running, and follow the default network")
    add.set_defaults(run=_install)

    uninstall = commands.add_parser(
        "uninstall",
        allow_abbrev=False,
        description="Restore the runtime's previous configuration, then remove the entry point. Exit codes: 0 done; "
        "1 refused: pods have additional networks; 2 wrong usage or configuration; 3 the configuration is removed, the "
        "entry point is not, because the runtime may need it for pods; 4 the ledger does not answer.",
    )
    _folders(uninstall)
    uninstall.add_argument("--force", action="store_true", help="ignore running pods, and do not ask the ledger")
    uninstall.set_defaults(run=_uninstall)
    return parser


def _folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cni-bin-dir", metavar="DIR", help="the runtime's plugins (default: /opt/cni/bin)")
    parser.add_argument("--cni-conf-dir", metavar="DIR", help="the runtime's configurations (default: /etc/cni/net.d)")


if __name__ == "__main__":
    sys.exit(main())
