"""A cache of the packet filter's rules, valid until the rules change.

A node may have hundreds of pods, each with one or two rules in the same chain: without the cache, a check of all pods
would take quadratic time. The kernel numbers every change of its rules, so the cache knows when it is out of date.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from nodeworker.kernel.nftables.client import Chain, Nftables, Rule, Rules


class RulesetCache:
    """The rules in the worker's namespace. For one thread at a time."""

    def __init__(self) -> None:
        self._generation: int | None = None
        self._chains: dict[Chain, list[Rule]] = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[Rules]:
        """Yield the rules as of now or later. Raises OSError."""
        with Nftables.on_node() as nft:
            generation = nft.generation()  # first: rules that are read after it are not older
            if generation is None or generation != self._generation:
                self._chains.clear()
            self._generation = generation
            yield _Open(nft, self._chains)


class _Open:
    """Reads the rules that the cache lacks."""

    def __init__(self, nft: Nftables, chains: dict[Chain, list[Rule]]) -> None:
        self._nft = nft
        self._chains = chains

    def rules(self, chain: Chain) -> list[Rule]:
        """See ``Rules``."""
        if chain not in self._chains:
            self._chains[chain] = self._nft.rules(chain)
        return self._chains[chain]
