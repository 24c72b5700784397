"""Compare a sandbox and its files with the ledger, and remember each interface's MTU if no plan sets it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec

from events.fold import Sandbox, SandboxKey
from events.process.settings import DriftSettings
from events.schema import Drift, DriftKind, ErrorClass, Phase
from nodeworker.drift.differences import Snapshot, differences
from nodeworker.drift.expected import ExpectedLink, expected_links
from nodeworker.drift.expected_rules import ExpectedRules
from nodeworker.drift.files import ExpectedFile, expected_files, file_differences
from nodeworker.drift.filter_rules import missing_rules
from nodeworker.drift.snapshot import read_files, take_snapshot
from nodeworker.errors import RequestFailedError, failed
from nodeworker.kernel.nftables.ruleset_cache import RulesetCache

T = TypeVar("T")


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """The expected and the actual state of a sandbox, and their differences."""

    expected: tuple[ExpectedLink, ...]
    snapshot: Snapshot
    netnsid: int
    files: tuple[ExpectedFile, ...]
    drifts: tuple[Drift, ...]
    mtus: Mapping[str, int]
    """The MTU that each interface must have, by name."""


class Inspector:
    """Inspects sandboxes on one thread: the kernel serialises link requests, so more threads gain nothing."""

    def __init__(self, settings: DriftSettings, boot_id: str = "") -> None:
        """*boot_id*: the node's current one; empty: not known."""
        self._settings = settings
        self._boot_id = boot_id
        self._mtus: dict[SandboxKey, dict[str, int]] = {}
        self._ruleset_cache = RulesetCache()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="observe")

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown()

    def forget(self, key: SandboxKey) -> None:
        """Drop the remembered MTUs of the sandbox."""
        self._mtus.pop(key, None)

    async def inspect(
        self, sandbox: Sandbox, phase: Phase = Phase.CHECK, *, everything: bool = False
    ) -> Inspection | None:
        """Return the inspection of *sandbox*, which is attached; None: its namespace is gone.

        *everything*: include networks whose drift policy is ``off``. Raises NetlinkError.
        """
        assert sandbox.plan is not None
        if self._boot_id and sandbox.boot_id not in ("", self._boot_id):
            return None  # after a reboot the path may belong to another sandbox, even with an equal inode
        policy: Callable[[str], str] = (lambda _: "observe") if everything else self._settings.of
        expected, netns, inode = expected_links(sandbox, policy), sandbox.plan.netns, sandbox.plan.netns_inode
        files = expected_files(sandbox, policy)
        try:
            observation, contents = await self.on_thread(
                lambda: (take_snapshot(netns, expected, phase, inode, self._ruleset_cache), read_files(files))
            )
        except RequestFailedError as error:
            if error.failure.error_class is ErrorClass.NAMESPACE_INVALID:
                return None
            raise
        mtus = self._learn_mtus(sandbox, expected, observation.snapshot)
        return Inspection(
            expected=expected,
            snapshot=observation.snapshot,
            netnsid=observation.netnsid,
            files=files,
            drifts=(*file_differences(files, contents), *differences(expected, observation.snapshot, mtus)),
            mtus=mtus,
        )

    async def inspect_present(self, sandbox: Sandbox, phase: Phase, *, everything: bool = False) -> Inspection:
        """Return ``inspect``. Raises RequestFailedError (namespace_invalid) if the namespace is gone."""
        inspection = await self.inspect(sandbox, phase, everything=everything)
        if inspection is None:
            message = "the namespace is gone: recreate the pod"
            raise failed(ErrorClass.NAMESPACE_INVALID, phase, message)
        return inspection

    async def interfaces_without_rules(
        self, rules: Mapping[SandboxKey, Collection[ExpectedRules]]
    ) -> Mapping[SandboxKey, frozenset[tuple[str, DriftKind]]]:
        """Return for each sandbox the interfaces that lack *rules* in the node's packet filter.

        Raises RequestFailedError (plugin_failed), NetlinkError.
        """

        def search() -> Mapping[SandboxKey, frozenset[tuple[str, DriftKind]]]:
            missing = {key: missing_rules(each, Phase.CHECK, self._ruleset_cache) for key, each in rules.items()}
            return {
                key: frozenset((ifname, kind) for ifname, kinds in found.items() for kind in kinds)
                for key, found in missing.items()
            }

        return await self.on_thread(search)

    async def on_thread(self, work: Callable[[], T]) -> T:
        """Return the result of *work*, which may block, run on the inspector's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _learn_mtus(
        self, sandbox: Sandbox, expected: tuple[ExpectedLink, ...], snapshot: Snapshot
    ) -> Mapping[str, int]:
        """Return the MTU that each interface must have: the planned or recorded one, else the first that a worker saw.

        Open MTU drift in the ledger carries the MTU that an earlier worker saw first.
        """
        known = self._mtus.setdefault(sandbox.key, {})
        for drift in sandbox.drifts:
            if drift.kind is DriftKind.MTU_CHANGED and drift.expected.isdecimal():
                known.setdefault(drift.ifname, int(drift.expected))
        for each in expected:
            if each.mtu:
                known[each.ifname] = each.mtu
            elif (link := snapshot.links.get(each.ifname)) is not None:
                known.setdefault(each.ifname, link.mtu)
        return known
