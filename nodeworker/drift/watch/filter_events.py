"""Hear that rules for containers went from the node's packet filter.

Each attach makes rules, each detach takes some away, and there may be others on the node whose rules change all day, as
those of a service proxy. So it only matters that a rule went that was for a watched sandbox, or for all of them, and it
is heard a while later, with all that went meanwhile. The older of the kernel's two filters tells nothing.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Mapping

import structlog

from events.fold import SandboxKey
from nodeworker.drift.expected_rules import Ruled
from nodeworker.drift.filter_rules import concerns, marks
from nodeworker.kernel.nftables import client
from nodeworker.kernel.rtnetlink.message import HEADER

log = structlog.get_logger(__name__)

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_GROUP = 7
"""Tables, chains and rules (``linux/netfilter/nfnetlink.h``)."""
_BUFFER_BYTES = 32 * 1024
_AT_ONCE = 1024
"""Messages taken before the loop gets to do something else: more than the kernel keeps."""
_REST = 0.4
"""Seconds from when there is something to hear until it is heard."""


class FilterEvents:
    """The socket, which there is only while there are rules to watch, read by the loop. A context manager."""

    def __init__(self, gone: Callable[[], None]) -> None:
        """Have *gone* called when rules went that are watched, or may have."""
        self._gone = gone
        self._watched: dict[SandboxKey, tuple[Ruled, ...]] = {}
        self._marks: frozenset[bytes] | None = None
        self._socket: socket.socket | None = None
        self._rest: asyncio.TimerHandle | None = None
        self._buffer = bytearray(_BUFFER_BYTES)
        self._able = False

    def __enter__(self) -> FilterEvents:
        self._able = True
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._able = False
        self._close()

    @property
    def watched(self) -> Mapping[SandboxKey, tuple[Ruled, ...]]:
        """What is watched."""
        return self._watched

    def watch(self, key: SandboxKey, ruled: tuple[Ruled, ...]) -> None:
        """Watch the rules for the sandbox; none: watch it no longer."""
        if self._watched.get(key, ()) == ruled:
            return
        self._marks = None
        if ruled:
            self._watched[key] = ruled
            self._listen()
        else:
            del self._watched[key]
            if not self._watched:
                self._close()

    def _listen(self) -> None:
        """Begin to hear, if there is a reason. Where the kernel does not tell, that is said once."""
        if not self._able or not self._watched or self._socket is not None:
            return
        try:
            self._socket = _opened()
        except OSError as error:
            self._able = False
            log.info("packet_filter_not_heard", error=str(error))
        else:
            self._await(self._socket)

    def _close(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        self._socket = self._rest = None

    def _await(self, connection: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(connection, self._postpone, connection)

    def _postpone(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(connection)
        self._rest = loop.call_later(_REST, self._read, connection)

    def _read(self, connection: socket.socket) -> None:
        gone = False
        for _ in range(_AT_ONCE):
            try:
                size, (sender, _) = connection.recvfrom_into(self._buffer)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                gone = True  # there was more to tell than was kept
                continue
            if sender == 0 and not gone:
                gone = self._tells_that_some_went(size)
        self._await(connection)
        if gone:
            self._gone()

    def _tells_that_some_went(self, size: int) -> bool:
        start = 0
        while start + HEADER.size <= size:
            length, kind, _, _, _ = HEADER.unpack_from(self._buffer, start)
            if length < HEADER.size or start + length > size:
                return False
            if kind == client.DELETE_RULE:
                body = bytes(self._buffer[start + HEADER.size : start + length])
                if concerns(body, self._known_marks()):
                    return True
            start += length + (-length % 4)
        return False

    def _known_marks(self) -> frozenset[bytes]:
        if self._marks is None:
            self._marks = frozenset(mark for each in self._watched.values() for one in each for mark in marks(one))
        return self._marks


def _opened() -> socket.socket:
    kinds = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    connection = socket.socket(socket.AF_NETLINK, kinds, client.Nftables.protocol)
    try:
        connection.bind((0, 0))
        connection.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _GROUP)
    except BaseException:
        connection.close()
        raise
    return connection
