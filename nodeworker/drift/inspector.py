"""Look at a sandbox, and remember of it what nobody recorded."""

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
from nodeworker.drift.expected import ExpectedLink, expected
from nodeworker.drift.expected_rules import Ruled
from nodeworker.drift.filter_rules import lost
from nodeworker.drift.snapshot import take
from nodeworker.errors import RequestFailedError, failed
from nodeworker.kernel.nftables.ruleset_cache import RulesetCache

T = TypeVar("T")


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a sandbox."""

    wanted: tuple[ExpectedLink, ...]
    seen: Snapshot
    netnsid: int
    drifts: tuple[Drift, ...]
    mtus: Mapping[str, int]
    """Of the interfaces, as they have to be."""


class Inspector:
    """The worker's look at sandboxes. The kernel has one lock for all links: one thread is enough."""

    def __init__(self, settings: DriftSettings, boot_id: str = "") -> None:
        """*boot_id*: of the node now; empty: not known."""
        self._settings = settings
        self._boot_id = boot_id
        self._mtus: dict[SandboxKey, dict[str, int]] = {}
        self._rules = RulesetCache()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="observe")

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown()

    def forget(self, key: SandboxKey) -> None:
        """Forget what nobody recorded of the sandbox."""
        self._mtus.pop(key, None)

    async def look(self, sandbox: Sandbox, phase: Phase = Phase.CHECK, *, everything: bool = False) -> Look | None:
        """Return what is seen of *sandbox*, which is attached; None: its namespace is gone, and all with it.

        *everything*: also of networks that are not to be looked at. Raises NetlinkError.
        """
        assert sandbox.plan is not None
        if self._boot_id and sandbox.boot_id not in ("", self._boot_id):
            return None  # what is at its path by now is somebody else's, be the inode the same
        policy: Callable[[str], str] = (lambda _: "observe") if everything else self._settings.of
        wanted, netns, inode = expected(sandbox, policy), sandbox.plan.netns, sandbox.plan.netns_inode
        try:
            glance = await self.on_thread(lambda: take(netns, wanted, phase, inode, self._rules))
        except RequestFailedError as error:
            if error.failure.error_class is ErrorClass.NAMESPACE_INVALID:
                return None
            raise
        mtus = self._learn(sandbox, wanted, glance.seen)
        return Look(
            wanted=wanted,
            seen=glance.seen,
            netnsid=glance.netnsid,
            drifts=differences(wanted, glance.seen, mtus),
            mtus=mtus,
        )

    async def see(self, sandbox: Sandbox, phase: Phase, *, everything: bool = False) -> Look:
        """Return the same. Raises RequestFailedError (namespace_invalid) where the namespace is gone."""
        look = await self.look(sandbox, phase, everything=everything)
        if look is None:
            message = f"the namespace of pod {sandbox.pod} is gone: delete the pod to have it made anew"
            raise failed(ErrorClass.NAMESPACE_INVALID, phase, message)
        return look

    async def lost_rules(
        self, ruled: Mapping[SandboxKey, Collection[Ruled]]
    ) -> Mapping[SandboxKey, frozenset[tuple[str, DriftKind]]]:
        """Return of each sandbox which interfaces lack rules in the node's packet filter, and nothing else of it.

        Raises RequestFailedError (plugin_failed), NetlinkError.
        """

        def look() -> Mapping[SandboxKey, frozenset[tuple[str, DriftKind]]]:
            found = {key: lost(each, Phase.CHECK, self._rules) for key, each in ruled.items()}
            return {
                key: frozenset((ifname, kind) for ifname, kinds in left.items() for kind in kinds)
                for key, left in found.items()
            }

        return await self.on_thread(look)

    async def on_thread(self, work: Callable[[], T]) -> T:
        """Return what *work* returns, which may block."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _learn(self, sandbox: Sandbox, wanted: tuple[ExpectedLink, ...], seen: Snapshot) -> Mapping[str, int]:
        """Return the MTU that each interface has to have: the one recorded, else the first that was seen.

        Drift that is open already tells what an earlier worker saw.
        """
        known = self._mtus.setdefault(sandbox.key, {})
        for drift in sandbox.drifts:
            if drift.kind is DriftKind.MTU_CHANGED and drift.expected.isdecimal():
                known.setdefault(drift.ifname, int(drift.expected))
        for each in wanted:
            if each.mtu:
                known[each.ifname] = each.mtu
            elif (link := seen.links.get(each.ifname)) is not None:
                known.setdefault(each.ifname, link.mtu)
        return known
