"""Delete interfaces, and wait until they are out of use instead of until the kernel has freed their memory.

The kernel closes an interface, removes it from every list, waits until no processor handles a packet of it, and
announces that to subscribers (RTM_DELLINK): one millisecond. Then the same system call releases the lock that all link
operations share, and waits 15 to 60 ms more until no reference is left (``netdev_run_todo``). So a separate thread
makes the call, and the caller reads the announcement from the same socket.

Interfaces that go together become one group, which one message deletes in little more time than one of them.
"""

from __future__ import annotations

import errno
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from nodeworker.kernel.layouts import nl, rtnl
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.socket import Netlink, NetlinkError, error_in_ack

_POLL = struct.pack("@ll", 0, 100_000)
"""Seconds and microseconds after which the caller checks whether the call failed without an answer."""
_GROUP: Final = 30
"""Interfaces of one group: the requests for them fit one system call."""
CALLS: Final = 8
"""Calls that the kernel has not returned from: more of them would only queue there."""

_slots = threading.BoundedSemaphore(CALLS)
"""One for the process, because all calls wait for the same lock of the kernel."""


class Remover(Netlink):
    """A socket that deletes interfaces of its namespace, once. A context manager."""

    def remove(self, names: Iterable[str]) -> None:
        """Return when those of the interfaces *names* that exist are out of use. Raises NetlinkError, OSError."""
        found = [link.index for link in links.find_each(self, names)]
        if not found:
            return
        self._socket.setsockopt(nl.SOL_NETLINK, nl.NETLINK_ADD_MEMBERSHIP, rtnl.RTNLGRP_LINK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _POLL)
        for start in range(0, len(found), _GROUP):
            left: Iterable[int] = found[start : start + _GROUP]
            if len(found) > 1:
                left, _ = self._delete(_as_group(left), left)
            for index in left:  # the kernel refuses the group if it can't delete one of its members
                _, refused = self._delete([links.delete(index)], [index])
                if refused is not None and refused.errno != errno.ENODEV:
                    raise refused

    def _delete(self, requests: Sequence[Request], indexes: Iterable[int]) -> tuple[set[int], NetlinkError | None]:
        """Send *requests*, the last of which deletes the interfaces *indexes*.

        Return those that were not deleted when the kernel answered, and its error if it refused.
        """
        last = self._sequence + len(requests)
        call = _Call(lambda: self._send(tuple(requests)))
        left = set(indexes)
        while left:
            try:
                for kind, flags, sequence, body in self._receive():
                    if kind == rtnl.RTM_DELLINK:
                        left.discard(links.deleted_index(body))
                    elif kind == nl.NLMSG_ERROR and sequence == last:
                        return left, error_in_ack(kind, body, flags)
            except OSError as error:
                if error.errno == errno.ENOBUFS:  # the kernel dropped announcements, so ask
                    call.join()
                    return {index for index in left if links.find(self, links.by_index(index))}, None
                if error.errno != errno.ETIMEDOUT:
                    raise
                if call.failure is not None:
                    raise call.failure from None
        return left, None


class _Call(threading.Thread):
    """A system call that returns later than its caller needs."""

    def __init__(self, send: Callable[[], object]) -> None:
        super().__init__(name="removal")
        self.failure: BaseException | None = None
        self._call = send
        _slots.acquire()
        try:
            self.start()
        except RuntimeError:  # the node is out of threads
            self.run()

    def run(self) -> None:
        """Make the call."""
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001  # the caller raises it
            self.failure = error
        finally:
            _slots.release()


def _as_group(indexes: Iterable[int]) -> list[Request]:
    """Return the requests that delete *indexes* as a group, whose number no other interface is likely to have."""
    group = secrets.randbelow(2**31 - 1) + 1
    return [*(links.change(index, group=group) for index in indexes), links.delete_group(group)]
