"""Keep in memory what the last batches touched, because the next one most likely touches it again.

It saves reading and decoding, nothing else: only what is committed is kept, and whoever finds the tables at another
position than this says lets go of all of it. Bounded, by what was touched longest ago.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TypeVar

from events.fold import Pending, Sandbox, SandboxKey
from events.schema import ContainerId, EventId, NodeName
from reconciler.projection.fold.batch import Changes, Loaded, Needed

CONTAINERS = 4096
"""With two attachments each, about 40 MB."""
INTENTS = 16_384

_K = TypeVar("_K")
_V = TypeVar("_V")


class BatchCache:
    """A part of the tables, as of ``position``."""

    def __init__(self) -> None:
        self.position = -1
        """-1: nothing is kept."""
        self._containers: OrderedDict[ContainerId, dict[SandboxKey, tuple[Sandbox, int]]] = OrderedDict()
        self._intents: OrderedDict[EventId, Pending | None] = OrderedDict()
        self._nodes: dict[NodeName, tuple[int, int]] = {}

    def forget(self) -> None:
        """Let go of everything."""
        self.position = -1
        self._containers.clear()
        self._intents.clear()
        self._nodes.clear()

    def drop(self, containers: Iterable[ContainerId]) -> None:
        """Let go of *containers*, whose rows were changed by somebody else."""
        for container in containers:
            self._containers.pop(container, None)

    def load(self, what: Needed, loaded: Loaded) -> Needed:
        """Put what is kept of *what* into *loaded*, and return what is not."""
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
        return Needed(  # to take all keys from those wanted would be a step for each of the former
            containers=what.containers - containers,
            intents=what.intents - intents,
            nodes=what.nodes - nodes,
            leaks=what.leaks,
        )

    def committed(self, what: Needed, changes: Changes) -> None:
        """Keep what a batch that needed *what* made of it."""
        self.position = changes.sequence
        fresh: dict[ContainerId, dict[SandboxKey, tuple[Sandbox, int]]] = {c: {} for c in what.containers}
        for key, sandbox in changes.folded.items():
            fresh[key.container_id][key] = sandbox, changes.created[key]
        _renew(self._containers, fresh, CONTAINERS)
        intents: dict[EventId, Pending | None] = dict.fromkeys(what.intents)
        intents.update(changes.open)
        _renew(self._intents, intents, INTENTS)
        self._nodes.update({row["node"]: (row["epoch"], row["command"]) for row in changes.nodes})


def _renew(kept: OrderedDict[_K, _V], fresh: dict[_K, _V], limit: int) -> None:
    for key, value in fresh.items():
        kept[key] = value
        kept.move_to_end(key)
    while len(kept) > limit:
        kept.popitem(last=False)
