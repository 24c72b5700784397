"""Cache the rows that the last batches touched: the next batch probably touches them again.

The cache only saves reads and decoding. It holds committed rows of one position; if the tables are at another position,
the store clears it. It is bounded, and evicts the least recently used rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TypeVar

from events.fold import Pending, Sandbox, SandboxKey
from events.schema import ContainerId, EventId, NodeName
from reconciler.projection.fold.batch import Changes, Loaded, Needed

CONTAINERS = 4096
"""About 40 MB with two attachments per container."""
INTENTS = 16_384

_K = TypeVar("_K")
_V = TypeVar("_V")


class BatchCache:
    """A part of the tables at ``position``."""

    def __init__(self) -> None:
        self.position = -1
        """-1: the cache is empty."""
        self._containers: OrderedDict[ContainerId, dict[SandboxKey, tuple[Sandbox, int]]] = OrderedDict()
        self._intents: OrderedDict[EventId, Pending | None] = OrderedDict()
        self._nodes: dict[NodeName, tuple[int, int]] = {}

    def clear(self) -> None:
        """Remove all entries."""
        self.position = -1
        self._containers.clear()
        self._intents.clear()
        self._nodes.clear()

    def drop(self, containers: Iterable[ContainerId]) -> None:
        """Remove the entries of *containers*, whose rows another writer changed."""
        for container in containers:
            self._containers.pop(container, None)

    def load(self, what: Needed, loaded: Loaded) -> Needed:
        """Copy the cached part of *what* into *loaded*; return the part to read from the tables."""
        containers = what.containers & self._containers.keys()
        for container in containers:
            for key, (sandbox, created) in self._containers[container].items():
                loaded.sandboxes[key], loaded.created[key] = sandbox, created
        intents = what.intents & self._intents.keys()
        for event_id in intents:
            if (pending := self._intents[event_id]) is not None:
                loaded.pending[event_id] = pending
        nodes = what.nodes & self._nodes.keys()
        for node in nodes:
            loaded.epochs[node], loaded.commands[node] = self._nodes[node]
        return Needed(  # a difference with all wanted keys would cost a step per wanted key
            containers=what.containers - containers,
            intents=what.intents - intents,
            nodes=what.nodes - nodes,
            leaks=what.leaks,
        )

    def committed(self, what: Needed, changes: Changes) -> None:
        """Add the results of a committed batch that needed *what*."""
        self.position = changes.sequence
        fresh: dict[ContainerId, dict[SandboxKey, tuple[Sandbox, int]]] = {c: {} for c in what.containers}
        for key, sandbox in changes.folded.items():
            fresh[key.container_id][key] = sandbox, changes.created[key]
        _insert(self._containers, fresh, CONTAINERS)
        intents: dict[EventId, Pending | None] = dict.fromkeys(what.intents)
        intents.update(changes.open)
        _insert(self._intents, intents, INTENTS)
        self._nodes.update({row["node"]: (row["epoch"], row["command"]) for row in changes.nodes})


def _insert(cache: OrderedDict[_K, _V], fresh: dict[_K, _V], limit: int) -> None:
    for key, value in fresh.items():
        cache[key] = value
        cache.move_to_end(key)
    while len(cache) > limit:
        cache.popitem(last=False)
