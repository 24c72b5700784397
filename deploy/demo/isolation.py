"""Give the demo a separate network and ``/run``, so that it does not change the machine.

Both are namespaces. They end with the last process in them, with everything made there, even when the demo is killed.
Root creates them directly. Another user gets them inside a user namespace, in which that user is root.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_MS_NOSUID = 0x2
_MS_NODEV = 0x4
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000

_SYSCTLS = Path("/proc/sys")


class _Switch(NamedTuple):
    """A kernel parameter that can forbid namespaces."""

    name: str
    forbids: str
    allows: str


_FOR_ALL = (_Switch("user.max_net_namespaces", "0", "1000"), _Switch("user.max_mnt_namespaces", "0", "1000"))
_FOR_USERS = (
    _Switch("kernel.unprivileged_userns_clone", "0", "1"),
    _Switch("user.max_user_namespaces", "0", "1000"),
    _Switch("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    *_FOR_ALL,
)

_libc = ctypes.CDLL(None, use_errno=True)


class IsolationError(Exception):
    """The kernel refused a namespace; the message is one sentence that says what to do."""


def isolate() -> None:
    """Move this process, which must have one thread, into new namespaces, with an empty ``/run``.

    Raises IsolationError; the process may then be in some of them and must end.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        _call("unshare", _CLONE_NEWNET | _CLONE_NEWNS | (_CLONE_NEWUSER if user else 0))
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        _call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
        _call("mount", b"tmpfs", b"/run", b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=755")
    except OSError as error:
        raise IsolationError(_sentence(error, _FOR_USERS if user else _FOR_ALL, is_root=not user)) from error


def _call(function: str, *args: int | bytes | None) -> None:
    if _libc[function](*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _sentence(error: OSError, switches: tuple[_Switch, ...], *, is_root: bool) -> str:
    refusal = f"the demo needs its own network and mount namespaces, which the kernel refuses ({error.strerror})"
    for switch in switches:
        if _value(switch) == switch.forbids:
            advice = f"set the kernel parameter {switch.name}, which is {switch.forbids}, to {switch.allows}"
            return f"{refusal}: {advice}{'' if is_root else ', or run the demo as root'}"
    if is_root:
        return f"{refusal}: run it outside of the container, or with CAP_SYS_ADMIN"
    return f"{refusal}: run it as root, or outside of this container or sandbox"


def _value(switch: _Switch) -> str:
    try:
        return (_SYSCTLS / switch.name.replace(".", "/")).read_text().strip()
    except OSError:
        return ""
