"""Sockets at both ends of an attachment, the node and the container, and what plugins do with links there."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

from events.schema import Phase
from nodeworker.errors import RequestFailedError
from nodeworker.kernel import namespaces
from nodeworker.kernel.namespaces import Namespace
from nodeworker.kernel.rtnetlink import addresses, links
from nodeworker.kernel.rtnetlink.addresses import Address
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.removal import Remover
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.plugins.native.api import Call, NativeError

_MODULES = {"vlan": "8021q"}
"""Kinds of interface whose kernel module has another name."""
_EXPLAINED = {
    os.strerror(errno.EADDRINUSE): "another interface on the same parent, or the parent, has the same MAC address: "
    "request another mac"
}
"""Words of the kernel that mislead: macvlan interfaces are meant, and not their IP addresses."""


class Endpoints:
    """The node and the container."""

    def __init__(self, *, node: Netlink, container: Netlink, netns: Namespace) -> None:
        self.node = node
        self.container = container
        self.netns = netns
        self._node_links: dict[str, Link] = {}

    @functools.cached_property
    def node_netnsid(self) -> int:
        """The number of the node's namespace in the container's, assigned now if there is none. Raises NetlinkError."""
        return links.ensure_netnsid(self.container, self.netns.node_fd)

    def node_link(self, name: str) -> Link | None:
        """Return the node's interface *name*, from a cache; None if there is none. Raises NativeError."""
        if name not in self._node_links:
            link = find_link(self.node, name)
            if link is None:
                return None
            self._node_links[name] = link
        return self._node_links[name]


class _OpenEndpoints:
    """The endpoints of the most recent container, open until the next one."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._netns = ""
        self._ends: Endpoints | None = None

    def open(self, netns: str, phase: Phase) -> Endpoints:
        """Return the endpoints of the container with *netns*. Raises RequestFailedError."""
        if self._ends is None or self._netns != netns:
            self.close()
            container = self._stack.enter_context(Namespace(netns, phase))
            self._ends = Endpoints(
                container=self._stack.enter_context(Netlink.within(container)),
                node=self._stack.enter_context(Netlink.on_node()),
                netns=container,
            )
            self._netns = netns
        return self._ends

    def close(self) -> None:
        """Close them."""
        self._ends = None
        self._stack.close()


_kept: ContextVar[_OpenEndpoints | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def share_endpoints() -> Iterator[None]:
    """Keep open what ``open_endpoints`` opens, for several calls in a row about one container."""
    kept = _OpenEndpoints()
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)
        kept.close()


@contextlib.contextmanager
def open_endpoints(call: Call, phase: Phase) -> Iterator[Endpoints]:
    """Yield the endpoints of *call*. Raises NativeError if the container's namespace is unusable."""
    outer = _kept.get()
    kept = outer or _OpenEndpoints()
    try:
        yield kept.open(call.netns, phase)
    except RequestFailedError as error:
        raise NativeError(error.failure.message, error.failure.code) from error
    finally:
        if outer is None:
            kept.close()


@contextlib.contextmanager
def error_context(task: str) -> Iterator[None]:
    """Turn an OSError inside into a NativeError that begins with "can't *task*"."""
    try:
        yield
    except OSError as error:
        words = error.strerror or str(error)
        raise NativeError(f"can't {task}: {_EXPLAINED.get(words, words)}") from error


def create_link(netlink: Netlink, name: str, kind: str, request: Request, *, ability: str = "") -> Link | None:
    """Send *request* for the new interface *name* and return it; None if its name, or that of its other end, is taken.

    *ability*: a feature of *kind* that *request* needs, for the error of a kernel that lacks it. Raises NativeError.
    """
    refused, answer = netlink.do_and_ask(request, links.by_name(name))
    if refused is None and answer is not None:
        return links.decode(answer)
    if refused is None:
        raise NativeError(f"interface {name} disappeared while the worker created it")
    if refused.errno == errno.EEXIST:
        return None
    if refused.errno == errno.EOPNOTSUPP:
        remedy = f"it lacks {ability}" if ability else f"load its module {_MODULES.get(kind, kind)}"
        words = f"this node's kernel does not support {kind} ({refused.strerror}): {remedy}"
        raise NativeError(f"can't create {name}: {words}") from refused
    raise NativeError(f"can't create {name} as a {kind}: {refused.strerror}") from refused


def find_link(netlink: Netlink, name: str) -> Link | None:
    """Return the interface *name*, None if there is none. Raises NativeError."""
    with error_context(f"look up interface {name}"):
        return links.find(netlink, links.by_name(name))


def name_taken(call: Call) -> NativeError:
    """Return the error for a foreign interface with the name of *call*."""
    return NativeError(f"the container has another interface {call.ifname} already: request another name")


def remove_links(netns: str, ifnames: Sequence[str]) -> None:
    """Delete those of the container's interfaces *ifnames* that exist, together; return when they are out of use.

    Raises NativeError.
    """
    if not netns or not namespaces.is_namespace(netns):
        return
    try:
        with (
            Namespace(netns, Phase.DEL) as container,
            error_context(f"delete interface {', '.join(ifnames)}"),
            Remover.within(container) as remover,
        ):
            remover.remove(ifnames)
    except RequestFailedError as error:
        raise NativeError(error.failure.message, error.failure.code) from error


def list_container_addresses(netns: str) -> list[Address]:
    """Return the addresses of all interfaces in the container's namespace; none if it is gone. Raises NativeError."""
    if not netns or not namespaces.is_namespace(netns):
        return []
    try:
        with error_context("look up the container's addresses"), Netlink.in_namespace(netns, Phase.DEL) as container:
            return [each.address for each in addresses.list_all(container)]
    except RequestFailedError as error:
        raise NativeError(error.failure.message, error.failure.code) from error
