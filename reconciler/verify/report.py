"""What a verification found, for people and for programs.

Pure. A difference is one sentence that names the pod, the network where there is one, and what to do; what could not be
looked at is said beside them, because silence would be taken for truth.
"""

from __future__ import annotations

import enum
from collections import Counter

import msgspec

SHOWN = 1000
"""Differences of one kind that are kept in words; all are counted."""


class Kind(enum.StrEnum):
    """Which two of the three differ. A closed list: it is also a metric's label."""

    PROJECTION = "projection"
    """The tables are not the fold of the ledger."""
    DRIFT = "drift"
    """A node is not what the ledger says of a sandbox."""
    LEAK = "leak"
    """A node holds something that nobody owns."""
    STATUS = "status"
    """A pod's network-status is not what the ledger says."""


class Difference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that is not as it should be."""

    kind: Kind
    message: str
    node: str = ""
    pod: str = ""
    sandbox: str = ""
    network: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, and what differs."""

    ledger: str
    """Name of the stream."""
    sequence: int
    """Up to where ledger and projection were compared."""
    events: int
    """Replayed."""
    sandboxes: int
    """Live ones."""
    nodes: int
    """Those that answered."""
    differences: tuple[Difference, ...]
    counts: dict[Kind, int]
    """Of all differences, also of those that are not in ``differences``."""
    unseen: tuple[str, ...]
    """What could not be looked at, and why."""
    unproved: int
    """Rows whose beginning the ledger has forgotten: there is nothing to hold them against."""
    seconds: float

    @property
    def exit_code(self) -> int:
        """0: all is as it should be; 1: something differs; 2: nothing was found to differ, but not all was seen."""
        if any(self.counts.values()):
            return 1
        return 2 if self.unseen else 0


class Findings:
    """Collects differences: all are counted, the first of each kind are kept."""

    def __init__(self) -> None:
        self.counts: Counter[Kind] = Counter(dict.fromkeys(Kind, 0))
        self.differences: list[Difference] = []
        self.unseen: list[str] = []
        self.unproved = 0

    def add(self, difference: Difference) -> None:
        """Take *difference* down."""
        self.counts[difference.kind] += 1
        if self.counts[difference.kind] <= SHOWN:
            self.differences.append(difference)


def lines(report: Report) -> list[str]:
    """Return *report* as people read it."""
    told = [f"{each.kind}: {each.message}" for each in report.differences]
    hidden = sum(report.counts.values()) - len(report.differences)
    if hidden:
        told.append(f"… and {hidden} more")
    told += [f"not seen: {each}" for each in report.unseen]
    if report.unproved:
        told.append(f"not proved: {report.unproved} rows, which are older than what the ledger remembers")
    found = ", ".join(f"{count} {kind}" for kind, count in report.counts.items() if count)
    nodes = "1 node" if report.nodes == 1 else f"{report.nodes} nodes"
    scope = f"{report.events} events, {report.sandboxes} live sandboxes, {nodes} compared"
    if found:
        verdict = f"differs: {found}"
    elif report.unseen:
        verdict = "nothing differs in what could be seen"
    else:
        verdict = "true"
    told.append(f"{verdict} ({scope}, up to sequence {report.sequence} of {report.ledger}, {report.seconds:.1f} s)")
    return told
