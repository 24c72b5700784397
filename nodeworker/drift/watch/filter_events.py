"""Receive the kernel's events of removed rules in the node's packet filter.

Each attach and detach changes rules, and other programs on the node, such as a service proxy, may change rules all
day. So only the removal of a rule counts that a watched sandbox needs, or that all share. It is read after a delay,
with all events since. nf_tables sends such events; the older filter of the kernel (xtables) does not.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Mapping

import structlog

from events.fold import SandboxKey
from nodeworker.drift.expected_rules import ExpectedRules
from nodeworker.drift.filter_rules import concerns, marks
from nodeworker.kernel.layouts import nfnetlink, nl
from nodeworker.kernel.nftables import client
from nodeworker.kernel.rtnetlink.message import HEADER

log = structlog.get_logger(__name__)

_BUFFER_BYTES = 32 * 1024
_AT_ONCE = 1024
"""Messages that are read before the event loop runs other tasks: more than the receive buffer holds."""
_REST = 0.4
"""Seconds from the first unread event until the socket is read."""


class FilterEvents:
    """The netlink socket, open while there are rules to watch, read by the event loop. A context manager."""

    def __init__(self, on_removed: Callable[[], None]) -> None:
        """*on_removed* is called after watched rules were removed, or may have been."""
        self._on_removed = on_removed
        self._watched: dict[SandboxKey, tuple[ExpectedRules, ...]] = {}
        self._marks: frozenset[bytes] | None = None
        self._socket: socket.socket | None = None
        self._rest: asyncio.TimerHandle | None = None
        self._buffer = bytearray(_BUFFER_BYTES)
        self._enabled = False

    def __enter__(self) -> FilterEvents:
        self._enabled = True
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._enabled = False
        self._close()

    @property
    def watched(self) -> Mapping[SandboxKey, tuple[ExpectedRules, ...]]:
        """The watched rules by sandbox."""
        return self._watched

    def watch(self, key: SandboxKey, rules: tuple[ExpectedRules, ...]) -> None:
        """Watch the *rules* of the sandbox; an empty tuple stops watching it."""
        if self._watched.get(key, ()) == rules:
            return
        self._marks = None
        if rules:
            self._watched[key] = rules
            self._listen()
        else:
            del self._watched[key]
            if not self._watched:
                self._close()

    def _listen(self) -> None:
        """Open the socket if there are rules to watch. Logs once if the kernel has no nf_tables."""
        if not self._enabled or not self._watched or self._socket is not None:
            return
        try:
            self._socket = _opened()
        except OSError as error:
            self._enabled = False
            log.info("packet_filter_not_heard", error=str(error))
        else:
            self._wait_for_event(self._socket)

    def _close(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        self._socket = self._rest = None

    def _wait_for_event(self, connection: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(connection, self._postpone, connection)

    def _postpone(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(connection)
        self._rest = loop.call_later(_REST, self._read, connection)

    def _read(self, connection: socket.socket) -> None:
        removed = False
        for _ in range(_AT_ONCE):
            try:
                size, (sender, _) = connection.recvfrom_into(self._buffer)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                removed = True  # the kernel dropped events
                continue
            if sender == 0 and not removed:
                removed = self._has_watched_removal(size)
        self._wait_for_event(connection)
        if removed:
            self._on_removed()

    def _has_watched_removal(self, size: int) -> bool:
        start = 0
        while start + HEADER.size <= size:
            length, kind, _, _, _ = HEADER.unpack_from(self._buffer, start)
            if length < HEADER.size or start + length > size:
                return False
            if kind == client.DELETE_RULE:
                body = bytes(self._buffer[start + HEADER.size : start + length])
                if concerns(body, self._watched_marks()):
                    return True
            start += length + (-length % 4)
        return False

    def _watched_marks(self) -> frozenset[bytes]:
        if self._marks is None:
            self._marks = frozenset(mark for each in self._watched.values() for one in each for mark in marks(one))
        return self._marks


def _opened() -> socket.socket:
    kinds = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    connection = socket.socket(socket.AF_NETLINK, kinds, client.Nftables.protocol)
    try:
        connection.bind((0, 0))
        connection.setsockopt(nl.SOL_NETLINK, nl.NETLINK_ADD_MEMBERSHIP, nfnetlink.NFNLGRP_NFTABLES)
    except BaseException:
        connection.close()
        raise
    return connection
