"""The result of a verification, for people and programs.

Pure. A difference is one sentence with the pod, the network if any, and the remedy. The report also lists what could
not be checked: otherwise silence would look like success.
"""

from __future__ import annotations

import enum
from collections import Counter

import msgspec

from events.exit_codes import ExitCode

MAX_LISTED = 1000
"""Maximum number of listed differences of one kind; all are counted."""


class Kind(enum.StrEnum):
    """The two sides of a difference. A closed list: it is also a metric's label."""

    PROJECTION = "projection"
    """The tables differ from the fold of the ledger."""
    DRIFT = "drift"
    """A node differs from the ledger's record of a sandbox."""
    LEAK = "leak"
    """A node holds a resource without an owner."""
    STATUS = "status"
    """A pod's network-status differs from the ledger."""


class Difference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One difference."""

    kind: Kind
    message: str
    node: str = ""
    pod: str = ""
    sandbox: str = ""
    network: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The scope of a verification and its differences."""

    ledger: str
    """Name of the stream."""
    sequence: int
    """Sequence up to which ledger and projection were compared."""
    events: int
    """Number of replayed events."""
    sandboxes: int
    """Number of live sandboxes."""
    nodes: int
    """Number of nodes that answered."""
    differences: tuple[Difference, ...]
    counts: dict[Kind, int]
    """Number of all differences of each kind, also of those not in ``differences``."""
    unseen: tuple[str, ...]
    """What could not be checked, and why."""
    warnings: tuple[str, ...]
    """What is unusual, but as recorded: the warnings of the attaches of live sandboxes."""
    unproved: int
    """Number of rows that can't be checked: the ledger deleted their first events."""
    seconds: float
    anomalies: tuple[str, ...] = ()
    """Messages in the ledger that are no events, one line each: without effect, but another program wrote them."""

    @property
    def exit_code(self) -> ExitCode:
        """``FAILED``: differences; ``IN_PART``: none, but some checks were impossible; else ``DONE``."""
        if any(self.counts.values()):
            return ExitCode.FAILED
        return ExitCode.IN_PART if self.unseen else ExitCode.DONE


class Findings:
    """Collects differences: counts all, and keeps the first ones of each kind."""

    def __init__(self) -> None:
        self.counts: Counter[Kind] = Counter(dict.fromkeys(Kind, 0))
        self.differences: list[Difference] = []
        self.unseen: list[str] = []
        self.unproved = 0

    def add(self, difference: Difference) -> None:
        """Add *difference*."""
        self.counts[difference.kind] += 1
        if self.counts[difference.kind] <= MAX_LISTED:
            self.differences.append(difference)


def lines(report: Report) -> list[str]:
    """Return *report* as lines for people."""
    text = [f"{each.kind}: {each.message}" for each in report.differences]
    hidden = sum(report.counts.values()) - len(report.differences)
    if hidden:
        text.append(f"… and {hidden} more")
    text += [f"warning: {each}" for each in report.warnings[:MAX_LISTED]]
    text += [f"not checked: {each}" for each in report.unseen]
    text += [f"anomaly: {each}" for each in report.anomalies]
    if report.unproved:
        text.append(f"not proved: {report.unproved} rows, which are older than the events in the ledger")
    found = ", ".join(f"{count} {kind}" for kind, count in report.counts.items() if count)
    sandboxes = "1 live sandbox" if report.sandboxes == 1 else f"{report.sandboxes} live sandboxes"
    nodes = "1 node" if report.nodes == 1 else f"{report.nodes} nodes"
    scope = f"{report.events} events, {sandboxes}, {nodes} compared"
    if found:
        verdict = f"differs: {found}"
    elif report.unseen:
        verdict = "no differences in what could be checked"
    else:
        verdict = "true"
    text.append(f"{verdict} ({scope}, up to sequence {report.sequence} of {report.ledger}, {report.seconds:.1f} s)")
    return text
