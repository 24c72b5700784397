"""Install the binary that the runtime executes, and run its STATUS command."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec

from nodeworker.host.install import NotYetError
from nodeworker.host.install.files import write_file

NAME = "plumbline"

_SECONDS = 10.0
"""More than the two seconds that the entry point allows for STATUS."""


class _Error(msgspec.Struct):
    msg: str = ""


def install(source: Path, folder: Path) -> bool:
    """Copy the binary *source* into *folder*, which is locked, unless it is there; return whether it was copied.

    Processes of the previous binary continue. Raises OSError.
    """
    return write_file(folder / NAME, source.read_bytes(), 0o755)


def check_status(folder: Path, socket: Path, config: bytes) -> None:
    """Run STATUS with *config*, through the entry point in *folder* and the worker at *socket*.

    Raises NotYetError if an ADD would fail now (CNI specification 1.1, section 2, "STATUS").
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
        raise NotYetError(f"pods could not be attached, so the runtime is not configured yet: {_msg(done.stdout)}")


def _msg(stdout: bytes) -> str:
    try:
        return msgspec.json.decode(stdout, type=_Error).msg
    except msgspec.MsgspecError:
        return "STATUS gave no reason"
