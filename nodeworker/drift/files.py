"""Derive the files that plugins keep for a sandbox from the ledger, and compare them with the node's.

Pure. They are host-local's reservations, and the files with device information.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from events.fold import Sandbox, SandboxKey, SandboxPhase
from events.schema import Drift, DriftKind, IfName, NetworkName
from nodeworker.plugins.native.ipam import recorded
from nodeworker.plugins.native.ipam.recorded import Reservation

FILE_DRIFTS = frozenset({DriftKind.RESERVATION_MISSING, DriftKind.RESERVATION_FOREIGN, DriftKind.DEVICE_INFO_CHANGED})
"""Kinds of drift of files."""


class ExpectedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of an attachment: of a reservation, or else of device information."""

    network: NetworkName
    ifname: IfName
    path: str
    reservation: Reservation | None = None
    device_info: str = ""
    """Its whole text."""

    @property
    def expected(self) -> str:
        """What a drift of it names: the reserved address, or its path."""
        return self.path if self.reservation is None else self.reservation.address

    def drift(self, content: bytes | None) -> Drift | None:
        """Return the drift of the file with *content*; None as content: it is missing."""
        if (reservation := self.reservation) is None:
            if content == self.device_info.encode():
                return None
            found = "" if content is None else "other text"
            return self._drift(DriftKind.DEVICE_INFO_CHANGED, found)
        if content is None:
            return recorded.missing(reservation, self.network)
        if reservation.is_kept_by(content):
            return None
        holder, ifname = recorded.holder_of(content)
        if not holder:
            return recorded.missing(reservation, self.network, "a file without an owner")
        return self._drift(DriftKind.RESERVATION_FOREIGN, f"{holder[:12]} {ifname}".rstrip())

    def _drift(self, kind: DriftKind, found: str) -> Drift:
        return Drift(kind=kind, network=self.network, ifname=self.ifname, expected=self.expected, found=found)


def expected_files(sandbox: Sandbox, policy: Callable[[str], str]) -> tuple[ExpectedFile, ...]:
    """Return the files of *sandbox*, which is attached, except those of networks whose *policy* is ``off``."""
    return tuple(_files(sandbox, policy))


def file_differences(expected: Sequence[ExpectedFile], contents: Mapping[str, bytes]) -> tuple[Drift, ...]:
    """Return the drift of the *expected* files; *contents* has those that exist, by path."""
    return tuple(drift for each in expected if (drift := each.drift(contents.get(each.path))) is not None)


def _files(sandbox: Sandbox, policy: Callable[[str], str]) -> Iterator[ExpectedFile]:
    for attachment in sandbox.attachments:
        plan = attachment.plan
        if policy(plan.network) == "off":
            continue
        for each in recorded.reservations_of(plan, attachment.result, sandbox.key.container_id):
            yield ExpectedFile(network=plan.network, ifname=plan.ifname, path=each.path, reservation=each)
        if attachment.device_info:
            yield ExpectedFile(
                network=plan.network, ifname=plan.ifname, path=plan.device_info, device_info=attachment.device_info
            )


def other_holder(sandboxes: Mapping[SandboxKey, Sandbox], lost: Reservation, content: bytes) -> str:
    """Return the pod of the container in the *content* of a file if it may hold the address of *lost*; empty: none.

    A container that the ledger does not have, or that is attached with other addresses, does not hold it.
    """
    container_id, _ = recorded.holder_of(content)
    for key, sandbox in sandboxes.items():
        if key.container_id != container_id:
            continue
        held = (
            each
            for attachment in sandbox.attachments
            for each in recorded.reservations_of(attachment.plan, attachment.result, container_id)
        )
        if sandbox.phase is not SandboxPhase.ATTACHED or any(each.path == lost.path and each != lost for each in held):
            return str(sandbox.pod)
    return ""
