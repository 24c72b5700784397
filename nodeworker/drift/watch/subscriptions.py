"""Map kernel changes to the sandboxes that they concern: by namespace, by parent link, by bridge port.

Pure. A node's links change all day, mostly without effect on a sandbox. Only a parent that was removed, added, renamed,
set up or down, or given another MTU concerns the sandboxes that rest on it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec

from events.fold import SandboxKey
from nodeworker.kernel.rtnetlink.links import Link

_NONE: frozenset[SandboxKey] = frozenset()


class _LinkState(NamedTuple):
    """The relevant properties of a parent or a port."""

    ifindex: int
    up: bool
    master: int
    mtu: int


class _WatchedLink:
    """A link of the node, and the sandboxes that rest on it."""

    __slots__ = ("sandboxes", "state")

    def __init__(self) -> None:
        self.state: _LinkState | None = None
        self.sandboxes: set[SandboxKey] = set()


class _Subscription(msgspec.Struct, frozen=True):
    """The namespace and the links of the node whose changes concern a sandbox."""

    netnsid: int
    parents: frozenset[str]
    ports: frozenset[str]
    vlan_ports: frozenset[int]


class Subscriptions:
    """The watched sandboxes."""

    def __init__(self) -> None:
        self._subscriptions: dict[SandboxKey, _Subscription] = {}
        self._namespaces: dict[int, set[SandboxKey]] = {}
        self._links: dict[str, _WatchedLink] = {}
        self._names: dict[int, set[str]] = {}
        self._vlan_ports: dict[int, SandboxKey] = {}

    def __len__(self) -> int:
        return len(self._subscriptions)

    def __contains__(self, key: SandboxKey) -> bool:
        return key in self._subscriptions

    def watch(
        self,
        key: SandboxKey,
        netnsid: int,
        parents: Mapping[str, Link | None],
        ports: Mapping[str, Link],
        vlan_ports: frozenset[int] = frozenset(),
    ) -> None:
        """Watch the sandbox in namespace *netnsid*, and the node's links that it rests on.

        *parents* and *ports* are the current state of those links by name; None: the link is missing. *vlan_ports* are
        the indexes of the ports whose VLANs matter.
        """
        subscription = _Subscription(netnsid, frozenset(parents), frozenset(ports), vlan_ports)
        if self._subscriptions.get(key) != subscription:
            self.forget(key)
            self._subscriptions[key] = subscription
            self._namespaces.setdefault(netnsid, set()).add(key)
            for name in subscription.parents | subscription.ports:
                self._links.setdefault(name, _WatchedLink()).sandboxes.add(key)
            for index in vlan_ports:
                self._vlan_ports[index] = key
        for name, link in (*parents.items(), *ports.items()):
            self._set_state(name, None if link is None else _LinkState(link.index, link.up, link.master, link.mtu))

    def forget(self, key: SandboxKey) -> None:
        """Stop watching the sandbox."""
        subscription = self._subscriptions.pop(key, None)
        if subscription is None:
            return
        if (in_namespace := self._namespaces.get(subscription.netnsid)) is not None:
            in_namespace.discard(key)
            if not in_namespace:
                del self._namespaces[subscription.netnsid]
        for name in subscription.parents | subscription.ports:
            watched = self._links[name]
            watched.sandboxes.discard(key)
            if not watched.sandboxes:
                self._set_state(name, None)
                del self._links[name]
        for index in subscription.vlan_ports:
            if self._vlan_ports.get(index) == key:
                del self._vlan_ports[index]

    def forget_all(self) -> None:
        """Stop watching all sandboxes: after lost kernel events, a namespace ID may belong to another namespace."""
        for key in tuple(self._subscriptions):
            self.forget(key)

    def of_namespace(self, netnsid: int) -> Iterable[SandboxKey]:
        """Return the sandboxes that a change in the namespace concerns."""
        return self._namespaces.get(netnsid, _NONE)

    def of_vlan_port(self, index: int) -> Iterable[SandboxKey]:
        """Return the sandboxes that a bridge event of the port *index* concerns; it may be about its VLANs."""
        return (key,) if (key := self._vlan_ports.get(index)) is not None else _NONE

    def update_link(
        self, names: Collection[str], *, index: int, up: bool, master: int, mtu: int, gone: bool
    ) -> Collection[SandboxKey]:
        """Store the new state of the node's link *index*; return the sandboxes that the change concerns.

        *names* are all its current names. Empty if no relevant property changed.
        """
        concerned: set[SandboxKey] = set()
        for name in {*names, *self._names.get(index, ())}:
            watched = self._links.get(name)
            if watched is None:
                continue
            state = None if gone or name not in names else _LinkState(index, up, master, mtu)
            if state is None and (watched.state is None or watched.state.ifindex != index):
                continue  # another link has the name now
            if state != watched.state:
                self._set_state(name, state)
                concerned |= watched.sandboxes
        return concerned

    def _set_state(self, name: str, state: _LinkState | None) -> None:
        """Store the *state* of the watched link *name*; None: the link does not exist."""
        watched = self._links[name]
        if watched.state is not None and (names := self._names.get(watched.state.ifindex)) is not None:
            names.discard(name)
            if not names:
                del self._names[watched.state.ifindex]
        if state is not None:
            self._names.setdefault(state.ifindex, set()).add(name)
        watched.state = state
