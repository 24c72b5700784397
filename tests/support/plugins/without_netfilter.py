"""A thread without netfilter, for itself and the programs that it executes."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_AF_NETLINK, _NETLINK_NETFILTER = 16, 12
_SOCKET_CALL = {"x86_64": 41, "aarch64": 198}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_REFUSE, _ALLOW = 0x00050000, 0x7FFF0000
_NUMBER, _FIRST_ARGUMENT, _THIRD_ARGUMENT = 0, 16, 32
"""Offsets in ``struct seccomp_data``."""

known = platform.machine() in _SOCKET_CALL
"""Whether this machine has what ``without_netfilter`` needs."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def without_netfilter(work: Callable[[], T]) -> T:
    """Return what *work* returns on a thread that is refused netfilter's sockets, by the kernel itself."""

    def run() -> T:
        _refuse()
        return work()

    with ThreadPoolExecutor(1) as thread:  # a filter ends with its thread
        return thread.submit(run).result()


def _refuse() -> None:
    code = b"".join(
        struct.pack("=HBBI", *each)
        for each in (
            (_LOAD_WORD, 0, 0, _NUMBER),
            (_JUMP_IF_EQUAL, 0, 5, _SOCKET_CALL[platform.machine()]),
            (_LOAD_WORD, 0, 0, _FIRST_ARGUMENT),
            (_JUMP_IF_EQUAL, 0, 3, _AF_NETLINK),
            (_LOAD_WORD, 0, 0, _THIRD_ARGUMENT),
            (_JUMP_IF_EQUAL, 0, 1, _NETLINK_NETFILTER),
            (_RETURN, 0, 0, _REFUSE | errno.EPROTONOSUPPORT),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    program, libc = _Program(len(code) // 8, code), ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0, os.strerror(
        ctypes.get_errno()
    )
