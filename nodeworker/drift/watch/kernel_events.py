"""Hear what the kernel says of links, addresses and routes, on the node and in the containers, through one socket.

The kernel lets a socket hear of every namespace that has a number in the socket's own (netlink(7),
``NETLINK_LISTEN_ALL_NSID``). A socket within each container would hold the container's namespace, and with it its
links and addresses, for as long as the worker lives, after the runtime has let go of it; a number holds nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Callable

import msgspec

from nodeworker.kernel.rtnetlink import links, message
from nodeworker.kernel.rtnetlink.message import HEADER

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_LISTEN_ALL_NSID = 8
_SO_RCVBUFFORCE = 33
_GROUPS = (1, 5, 7, 9, 11, 28)
"""Links; addresses and routes of IPv4, then of IPv6; numbers of namespaces (``linux/rtnetlink.h``)."""
_RTM_DELNSID = 89

_QUEUE_BYTES = 1 << 20
"""What the kernel keeps for us at most; a node on which hundreds of links change at once must not be deaf."""
_BUFFER_BYTES = 16 * 1024
_ANCILLARY_BYTES = socket.CMSG_SPACE(4)
_AT_ONCE = 64
"""Messages taken before the loop gets to do something else."""
_REST = 0.02
"""Seconds until the socket is read again after it was empty. An attach makes the kernel say thirty things, one after
another: to hear each as it comes would cost more than to make the interface."""

_LINK = struct.Struct("=BxHiII")
_NSID = struct.Struct("=i")
_FAMILY_BYTES = 4
_NETNSA_NSID = 1


class NodeLink(msgspec.Struct, frozen=True):
    """A link of the node, as it is now."""

    index: int
    names: tuple[str, ...]
    """Its name, and the alternative ones."""
    up: bool
    master: int
    mtu: int
    gone: bool


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a monitor tells."""

    container: Callable[[int], None]
    """Something changed in the namespace of that number."""
    closed: Callable[[int], None]
    """That namespace is gone, and its number free."""
    node: Callable[[NodeLink], None]
    port: Callable[[int], None]
    """A bridge of the node tells of its port of that index: its VLANs may be others."""
    missed: Callable[[], None]
    """More changed than could be told: anything may have."""


class KernelEvents:
    """The socket, read by the loop. A context manager."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._buffer = bytearray(_BUFFER_BYTES)
        self._rest: asyncio.TimerHandle | None = None
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )

    def __enter__(self) -> KernelEvents:
        """Begin to hear. Raises OSError where the worker may not."""
        try:
            with contextlib.suppress(PermissionError):  # it may be forbidden, and less will do
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE_BYTES)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID, 1)
            self._socket.bind((0, 0))
            for group in _GROUPS:  # after bind, which would undo it
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
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
                self._heard.missed()
                continue
            if sender == 0:  # else it is no word of the kernel's
                self._hear(size, _number(ancillary))

    def _hear(self, size: int, netnsid: int | None) -> None:
        if netnsid is not None:
            self._heard.container(netnsid)
            return
        start = 0
        while start + HEADER.size <= size:
            length, kind, _, _, _ = HEADER.unpack_from(self._buffer, start)
            if length < HEADER.size or start + length > size:
                return
            self._of_node(kind, start + HEADER.size, start + length)
            start += length + (-length % 4)

    def _of_node(self, kind: int, start: int, end: int) -> None:
        if kind in {links.RTM_NEWLINK, links.RTM_DELLINK}:
            family, _, index, flags, _ = _LINK.unpack_from(self._buffer, start)
            if family == links.AF_BRIDGE and kind == links.RTM_NEWLINK:
                self._heard.port(index)
            if family != socket.AF_UNSPEC:
                return
            found = message.attributes(bytes(self._buffer[start + _LINK.size : end]))
            link = NodeLink(
                index=index,
                names=(message.as_text(found.get(links.IFLA_IFNAME)), *links.altnames(found)),
                up=bool(flags & links.IFF_UP),
                master=message.as_int(found.get(links.IFLA_MASTER)),
                mtu=message.as_int(found.get(links.IFLA_MTU)),
                gone=kind == links.RTM_DELLINK,
            )
            self._heard.node(link)
        elif kind == _RTM_DELNSID:
            found = message.attributes(bytes(self._buffer[start + _FAMILY_BYTES : end]))
            if (number := found.get(_NETNSA_NSID)) is not None:
                self._heard.closed(_NSID.unpack(number)[0])


def _number(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """Return the number of the namespace that a message is from; None: the node's own."""
    for level, kind, data in ancillary:
        if (level, kind) == (_SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID):
            return _NSID.unpack(data)[0]
    return None
