"""Who has to be looked at when something changes: by namespace, by parent, by port.

Pure. A node tells of its links all day, mostly of what matters to no sandbox: only a parent that went, came, or was set
up or down, or got another name or MTU, wakes those that rest on it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec

from events.fold import SandboxKey
from nodeworker.kernel.rtnetlink.links import Link

_NOBODY: frozenset[SandboxKey] = frozenset()


class _State(NamedTuple):
    """What matters of a parent, or of a port."""

    number: int
    """Its index."""
    up: bool
    master: int
    mtu: int


class _Watched:
    """A link of the node, and who rests on it."""

    __slots__ = ("sandboxes", "state")

    def __init__(self) -> None:
        self.state: _State | None = None
        self.sandboxes: set[SandboxKey] = set()


class _Place(msgspec.Struct, frozen=True):
    """Where a sandbox is known."""

    netnsid: int
    parents: frozenset[str]
    ports: frozenset[str]
    in_vlans: frozenset[int]


class Subscriptions:
    """The sandboxes that are watched."""

    def __init__(self) -> None:
        self._places: dict[SandboxKey, _Place] = {}
        self._namespaces: dict[int, set[SandboxKey]] = {}
        self._links: dict[str, _Watched] = {}
        self._names: dict[int, set[str]] = {}
        self._in_vlans: dict[int, SandboxKey] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: SandboxKey) -> bool:
        return key in self._places

    def watch(
        self,
        key: SandboxKey,
        netnsid: int,
        parents: Mapping[str, Link | None],
        ports: Mapping[str, Link],
        in_vlans: frozenset[int] = frozenset(),
    ) -> None:
        """Watch the sandbox in the namespace of number *netnsid*, and what it rests on, which is as given.

        *parents* and *ports* are links of the node by name; None: one that is missing. *in_vlans* are the indexes of
        those ports whose VLANs matter.
        """
        place = _Place(netnsid, frozenset(parents), frozenset(ports), in_vlans)
        if self._places.get(key) != place:
            self.forget(key)
            self._places[key] = place
            self._namespaces.setdefault(netnsid, set()).add(key)
            for name in place.parents | place.ports:
                self._links.setdefault(name, _Watched()).sandboxes.add(key)
            for index in in_vlans:
                self._in_vlans[index] = key
        for name, link in (*parents.items(), *ports.items()):
            self._settle(name, None if link is None else _State(link.index, link.up, link.master, link.mtu))

    def forget(self, key: SandboxKey) -> None:
        """Watch the sandbox no longer."""
        place = self._places.pop(key, None)
        if place is None:
            return
        if (there := self._namespaces.get(place.netnsid)) is not None:
            there.discard(key)
            if not there:
                del self._namespaces[place.netnsid]
        for name in place.parents | place.ports:
            watched = self._links[name]
            watched.sandboxes.discard(key)
            if not watched.sandboxes:
                self._settle(name, None)
                del self._links[name]
        for index in place.in_vlans:
            if self._in_vlans.get(index) == key:
                del self._in_vlans[index]

    def forget_namespaces(self) -> None:
        """Forget which number belongs to whom: it may have been told, unheard, that numbers were given to others."""
        for key in tuple(self._places):
            self.forget(key)

    def within(self, netnsid: int) -> Iterable[SandboxKey]:
        """Return whom a change in that namespace concerns."""
        return self._namespaces.get(netnsid, _NOBODY)

    def in_vlans(self, index: int) -> Iterable[SandboxKey]:
        """Return whom it concerns that a bridge tells of its port *index*, be it of its VLANs or of something else."""
        return (key,) if (key := self._in_vlans.get(index)) is not None else _NOBODY

    def on(
        self, names: Collection[str], *, index: int, up: bool, master: int, mtu: int, gone: bool
    ) -> Collection[SandboxKey]:
        """Return whom it concerns that the node's link *index* has *names*, and is like that; by now no others.

        Nobody, if nothing that matters changed.
        """
        concerned: set[SandboxKey] = set()
        for name in {*names, *self._names.get(index, ())}:
            watched = self._links.get(name)
            if watched is None:
                continue
            state = None if gone or name not in names else _State(index, up, master, mtu)
            if state is None and (watched.state is None or watched.state.number != index):
                continue  # another link of that name has come since
            if state != watched.state:
                self._settle(name, state)
                concerned |= watched.sandboxes
        return concerned

    def _settle(self, name: str, state: _State | None) -> None:
        """Take note that the watched link *name* is like that; None: there is none."""
        watched = self._links[name]
        if watched.state is not None and (names := self._names.get(watched.state.number)) is not None:
            names.discard(name)
            if not names:
                del self._names[watched.state.number]
        if state is not None:
            self._names.setdefault(state.number, set()).add(name)
        watched.state = state
