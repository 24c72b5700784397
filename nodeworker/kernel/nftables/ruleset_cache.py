"""The packet filter's rules, read once for all who ask, until they change.

A node may have hundreds of pods, and a rule or two for each in the same chain: to read that for every pod would cost
more with each pod. The kernel counts the changes of its rules, so that what was read is known to be as it is now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from nodeworker.kernel.nftables.client import Chain, Nftables, Rule, Rules


class RulesetCache:
    """What was read of the rules in the namespace of the worker. Not for two threads at once."""

    def __init__(self) -> None:
        self._generation: int | None = None
        self._chains: dict[Chain, list[Rule]] = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[Rules]:
        """Hold the rules as they are now, or later. Raises OSError."""
        with Nftables.on_node() as nft:
            generation = nft.generation()  # first: what is read after it is not older
            if generation is None or generation != self._generation:
                self._chains.clear()
            self._generation = generation
            yield _Open(nft, self._chains)


class _Open:
    """Reads what is not known."""

    def __init__(self, nft: Nftables, chains: dict[Chain, list[Rule]]) -> None:
        self._nft = nft
        self._chains = chains

    def rules(self, chain: Chain) -> list[Rule]:
        """See ``Rules``."""
        if chain not in self._chains:
            self._chains[chain] = self._nft.rules(chain)
        return self._chains[chain]
