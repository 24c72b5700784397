"""Take interfaces away, and wait until they are out of use instead of until the kernel has cleaned up after them.

What deletes an interface closes it, takes it out of every list, waits until no processor handles a packet of it any
more, and tells whoever listens (RTM_DELLINK): that is a millisecond. Then the same system call lets go of the lock that
all link operations share and waits 15 to 60 ms more for the memory to be nobody's (``netdev_run_todo``). So the call is
made on a thread of its own, and whoever listens on the same socket need not wait for its end.

Interfaces that go together are put into a group and deleted by one message, which takes little longer than one of them.
"""

from __future__ import annotations

import errno
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.message import NLMSG_ERROR, Request
from nodeworker.kernel.rtnetlink.socket import Netlink, NetlinkError, refusal

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_RTNLGRP_LINK = 1

_LOOK = struct.pack("@ll", 0, 100_000)
"""Seconds and microseconds between two looks at whether the call has failed without an answer."""
_TOGETHER: Final = 30
"""Interfaces of one group: what they take goes out in one system call."""
CALLS: Final = 8
"""Calls that the kernel has not returned from: beyond that they would only queue there."""

_places = threading.BoundedSemaphore(CALLS)
"""Of the process, because it is the kernel that is spared."""


class Remover(Netlink):
    """A socket for taking interfaces of its namespace away, once. A context manager."""

    def remove(self, names: Iterable[str]) -> None:
        """Return when the interfaces *names*, or those that are there, are out of use. Raises NetlinkError, OSError."""
        found = [link.index for link in links.find_each(self, names)]
        if not found:
            return
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _RTNLGRP_LINK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _LOOK)
        for start in range(0, len(found), _TOGETHER):
            left: Iterable[int] = found[start : start + _TOGETHER]
            if len(found) > 1:
                left, _ = self._delete(_as_group(left), left)
            for index in left:  # the kernel refuses a group if one of it can't be deleted, and that one only
                _, refused = self._delete([links.delete(index)], [index])
                if refused is not None and refused.errno != errno.ENODEV:
                    raise refused

    def _delete(self, requests: Sequence[Request], indexes: Iterable[int]) -> tuple[set[int], NetlinkError | None]:
        """Send *requests*, the last of which deletes the interfaces *indexes*.

        Return which of them it was answered without having deleted, and why, if it was refused.
        """
        last = self._sequence + len(requests)
        call = _Call(lambda: self._send(tuple(requests)))
        left = set(indexes)
        while left:
            try:
                for kind, flags, sequence, body in self._receive():
                    if kind == links.RTM_DELLINK:
                        left.discard(links.index_gone(body))
                    elif kind == NLMSG_ERROR and sequence == last:
                        return left, refusal(kind, body, flags)
            except OSError as error:
                if error.errno == errno.ENOBUFS:  # so much is going on in the namespace that news were lost
                    call.join()
                    return {index for index in left if links.find(self, links.numbered(index))}, None
                if error.errno != errno.ETIMEDOUT:
                    raise
                if call.failure is not None:
                    raise call.failure from None
        return left, None


class _Call(threading.Thread):
    """A system call that returns later than anybody needs to wait."""

    def __init__(self, send: Callable[[], object]) -> None:
        super().__init__(name="removal")
        self.failure: BaseException | None = None
        self._call = send
        _places.acquire()
        try:
            self.start()
        except RuntimeError:  # the node has no thread to spare
            self.run()

    def run(self) -> None:
        """Make the call."""
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001  # it is raised where the answer is waited for
            self.failure = error
        finally:
            _places.release()


def _as_group(indexes: Iterable[int]) -> list[Request]:
    """Return what deletes *indexes* together, by a number that no other interface is likely to have."""
    group = secrets.randbelow(2**31 - 1) + 1
    return [*(links.change(index, group=group) for index in indexes), links.delete_group(group)]
