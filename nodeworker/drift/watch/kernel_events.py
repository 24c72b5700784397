"""Receive the kernel's events of links, addresses and routes, on the node and in the containers, on one socket.

The kernel sends a socket the events of every namespace that has an ID in the socket's own namespace (netlink(7),
``NETLINK_LISTEN_ALL_NSID``). A socket inside each container would keep the container's namespace alive, with its links
and addresses, after the runtime has removed it; an ID keeps nothing alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Callable

import msgspec

from nodeworker.kernel.layouts import AF_BRIDGE, nl, rtnl
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.message import HEADER

_SO_RCVBUFFORCE = 33
_GROUPS = (
    rtnl.RTNLGRP_LINK,
    rtnl.RTNLGRP_IPV4_IFADDR,
    rtnl.RTNLGRP_IPV4_ROUTE,
    rtnl.RTNLGRP_IPV6_IFADDR,
    rtnl.RTNLGRP_IPV6_ROUTE,
    rtnl.RTNLGRP_NSID,
)

_QUEUE_BYTES = 1 << 20
"""The receive buffer: large enough for a node on which hundreds of links change at once."""
_BUFFER_BYTES = 16 * 1024
_ANCILLARY_BYTES = socket.CMSG_SPACE(4)
_AT_ONCE = 64
"""Messages that are read before the event loop runs other tasks."""
_REST = 0.02
"""Seconds between reads once the socket is empty. An attach causes about thirty events in a row; to read each at once
would cost more than to create the interface."""

_NSID = struct.Struct("=i")


class NodeLink(msgspec.Struct, frozen=True):
    """A link of the node after a change."""

    index: int
    names: tuple[str, ...]
    """Its name, then its alternative names."""
    up: bool
    master: int
    mtu: int
    gone: bool


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """The callbacks for kernel events."""

    container_changed: Callable[[int], None]
    """Something changed in the namespace with that ID."""
    container_gone: Callable[[int], None]
    """The namespace with that ID is gone; the kernel may reuse the ID."""
    node_link_changed: Callable[[NodeLink], None]
    port_changed: Callable[[int], None]
    """A bridge of the node reports its port with that index: its VLANs may have changed."""
    overflow: Callable[[], None]
    """The kernel dropped events because the receive buffer was full."""


class KernelEvents:
    """The netlink socket, read by the event loop. A context manager."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._buffer = bytearray(_BUFFER_BYTES)
        self._rest: asyncio.TimerHandle | None = None
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )

    def __enter__(self) -> KernelEvents:
        """Subscribe. Raises OSError if the worker lacks the permission."""
        try:
            with contextlib.suppress(PermissionError):  # without it the receive buffer has the default size
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE_BYTES)
            self._socket.setsockopt(nl.SOL_NETLINK, nl.NETLINK_LISTEN_ALL_NSID, 1)
            self._socket.bind((0, 0))
            for group in _GROUPS:  # after bind, which clears the groups
                self._socket.setsockopt(nl.SOL_NETLINK, nl.NETLINK_ADD_MEMBERSHIP, group)
            self._listen()
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._rest is not None:
            self._rest.cancel()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                size, ancillary, _, (sender, _) = self._socket.recvmsg_into([self._buffer], _ANCILLARY_BYTES)
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._socket)
                self._rest = loop.call_later(_REST, self._listen)
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._listener.overflow()
                continue
            if sender == 0:  # another sender is a process, not the kernel
                self._dispatch(size, _nsid(ancillary))

    def _dispatch(self, size: int, netnsid: int | None) -> None:
        if netnsid is not None:
            self._listener.container_changed(netnsid)
            return
        start = 0
        while start + HEADER.size <= size:
            length, kind, _, _, _ = HEADER.unpack_from(self._buffer, start)
            if length < HEADER.size or start + length > size:
                return
            self._node_event(kind, bytes(self._buffer[start + HEADER.size : start + length]))
            start += length + (-length % 4)

    def _node_event(self, kind: int, body: bytes) -> None:
        if kind in {rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK}:
            notice = links.decode_notice(body)
            if notice.family == AF_BRIDGE and kind == rtnl.RTM_NEWLINK:
                self._listener.port_changed(notice.index)
            if notice.family != socket.AF_UNSPEC:
                return
            link = NodeLink(
                index=notice.index,
                names=notice.names,
                up=notice.up,
                master=notice.master,
                mtu=notice.mtu,
                gone=kind == rtnl.RTM_DELLINK,
            )
            self._listener.node_link_changed(link)
        elif kind == rtnl.RTM_DELNSID and (number := links.decode_netnsid(body)) is not None:
            self._listener.container_gone(number)


def _nsid(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """Return the ID of the namespace that a message comes from; None: the node's own."""
    for level, kind, data in ancillary:
        if (level, kind) == (nl.SOL_NETLINK, nl.NETLINK_LISTEN_ALL_NSID):
            return _NSID.unpack(data)[0]
    return None
