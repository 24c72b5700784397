"""The binary that the runtime executes: put in its place, and asked what the runtime would ask it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec

from nodeworker.host.install import NotYetError
from nodeworker.host.install.files import put

NAME = "plumbline"

_SECONDS = 10.0
"""The entry point itself gives STATUS two."""


class _Error(msgspec.Struct):
    msg: str = ""


def install(source: Path, folder: Path) -> bool:
    """Put the binary *source* into *folder*, which is held, unless it is there; return whether it was not.

    Calls that run the one before end undisturbed. Raises OSError.
    """
    return put(folder / NAME, source.read_bytes(), 0o755)


def ask(folder: Path, socket: Path, config: bytes) -> None:
    """Return if an ADD with *config*, through the entry point in *folder* and the worker at *socket*, would work now.

    Raises NotYetError (CNI specification 1.1, section 2, "STATUS").
    """
    try:
        done = subprocess.run(
            [str(folder / NAME)],
            input=config,
            env={"CNI_COMMAND": "STATUS", "CNI_PATH": str(folder), "PLUMBLINE_SOCKET": str(socket)},
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotYetError(f"the entry point {folder / NAME} can't be executed: {error}") from error
    if done.returncode != 0:
        raise NotYetError(f"pods could not be attached, so the runtime is not told of it yet: {_said(done.stdout)}")


def _said(stdout: bytes) -> str:
    try:
        return msgspec.json.decode(stdout, type=_Error).msg
    except msgspec.MsgspecError:
        return "it gave no reason"
