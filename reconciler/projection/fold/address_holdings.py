"""Compute which attachment holds which address, and from when to when.

Pure. An address is held from the event that attached its interface to the event that reports its removal. A failed DEL
releases nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from events.fold import Attachment, AttachmentPhase, Sandbox
from events.schema import (
    AttachPlanned,
    DriftObserved,
    DriftRepaired,
    DriftRepairFailed,
    Stored,
)
from reconciler.projection.fold.result_addresses import addresses_of
from reconciler.projection.fold.rows import Row

_HARMLESS = frozenset(
    {
        AttachPlanned,
        DriftObserved,
        DriftRepaired,
        DriftRepairFailed,
    }
)
"""Frequent events that never change addresses."""


class AddressHolding(NamedTuple):
    """One address of one attachment of a sandbox."""

    network: str
    ifname: str
    address: str
    """Canonical, without prefix length."""
    prefix_length: int


def address_holdings(sandbox: Sandbox | None) -> list[AddressHolding]:
    """Return the addresses that *sandbox* holds, in plan order and without repetition."""
    return _of(_holding(sandbox))


def _holding(sandbox: Sandbox | None) -> tuple[Attachment, ...]:
    if sandbox is None or not sandbox.attachments or not sandbox.holds_resources:
        return ()
    return sandbox.attachments


_DETACHED = AttachmentPhase.DETACHED  # a lookup of the enum member takes longer than the comparison


def _of(attachments: Iterable[Attachment]) -> list[AddressHolding]:
    found: dict[tuple[str, str, str], AddressHolding] = {}
    for attachment in attachments:
        if attachment.result and attachment.phase is not _DETACHED:
            plan = attachment.plan
            for address, length in addresses_of(attachment.result, plan.cni_version):
                one = AddressHolding(plan.network, plan.ifname, address, length)
                found.setdefault(one[:3], one)
    return list(found.values())


class HoldingRows:
    """Collects the address rows that a batch begins and ends."""

    def __init__(self) -> None:
        self.opened: list[Row] = []
        """New rows. Rows that the same batch ends have ``until``."""
        self.closed: list[Row] = []
        """Keys of earlier rows that end in this batch."""
        self._open: dict[tuple[str, str, AddressHolding], Row] = {}

    def step(self, stored: Stored, before: Sandbox | None, after: Sandbox) -> None:
        """Process *stored*, which changed *before* to *after*."""
        if before is after or type(stored.event.data) in _HARMLESS:
            return
        one, other = _holding(before), _holding(after)
        if one is other:
            return
        if len(one) == len(other):  # most events change one attachment
            pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not b]
            one, other = tuple(a for a, _ in pairs), tuple(b for _, b in pairs)
        had, has = _of(one), _of(other)
        for each in had:
            if each not in has:
                self._close(stored, after, each)
        for each in has:
            if each not in had:
                self._begin(stored, after, each)

    def _begin(self, stored: Stored, sandbox: Sandbox, one: AddressHolding) -> None:
        key = sandbox.key
        row: Row = {
            "address": one.address,
            "sequence": stored.sequence,
            "network": one.network,
            "ifname": one.ifname,
            "prefix_length": one.prefix_length,
            "container_id": key.container_id,
            "sandbox_ifname": key.ifname,
            "node": sandbox.node,
            "namespace": sandbox.pod.namespace,
            "pod": sandbox.pod.name,
            "uid": sandbox.pod.uid,
            "since": stored.event.at,
            "until": None,
            "until_sequence": None,
        }
        self.opened.append(row)
        self._open[key.container_id, key.ifname, one] = row

    def _close(self, stored: Stored, sandbox: Sandbox, one: AddressHolding) -> None:
        key = sandbox.key
        row = self._open.pop((key.container_id, key.ifname, one), None)
        if row is not None:
            row["until"], row["until_sequence"] = stored.event.at, stored.sequence
            return
        self.closed.append(
            {
                "id": key.container_id,
                "name": key.ifname,
                "on": one.network,
                "as": one.ifname,
                "what": one.address,
                "at": stored.event.at,
                "end": stored.sequence,
            }
        )
