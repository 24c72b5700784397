"""Scan the node for resources without an owner.

The order makes a scan safe: first list the held resources, then ask the runtime, then read the ledger. A sandbox that
starts meanwhile is known to the runtime or the ledger by then, and its resources are not in the list.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from events.fold import State
from events.schema import AttachRequested, ContainerId, DetachRequested, Leak, LeakKind
from nodeworker.kernel.namespaces import why_gone
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.leaks.evidence import held_files
from nodeworker.leaks.evidence.addresses_in_use import addresses_in_use
from nodeworker.leaks.evidence.container_runtime import ContainerRuntime, RuntimeUnknownError
from nodeworker.leaks.evidence.footprint import Footprint, NodeEnd
from nodeworker.leaks.judge import Facts, Finding, HeldFile, HeldLink, Inventory, Judgement, judge, link_leak_id

_WITH_ADDRESS = (LeakKind.ADDRESS_UNOWNED, LeakKind.ADDRESS_TORN)


class _Listed(msgspec.Struct):
    """The held resources, as far as they could be listed."""

    files: list[HeldFile] = []
    links: list[HeldLink] = []
    unseen: list[str] = []
    unscanned: set[str] = set()


class LeakScanner:
    """Scans one node."""

    def __init__(
        self, state: State, boot_id: str, runtime: ContainerRuntime, footprint: Footprint, results_dir: str
    ) -> None:
        """*results_dir*: the folder in which the runtime caches results of ADDs."""
        self._state = state
        self._boot_id = boot_id
        self._runtime = runtime
        self._footprint = footprint
        self._results_dir = results_dir

    async def scan(self) -> Judgement:
        """Return the judgement of the whole node."""
        self._footprint.learn_sandboxes(self._state.sandboxes)
        live = self._live()
        listed = await asyncio.to_thread(self._list, live)
        return await self._judge(listed, lambda _: True)

    async def rescan(self, leak: Leak) -> Finding | None:
        """Return the current evidence of *leak*; None: it is no leak, or that is undecided."""
        listed = await asyncio.to_thread(self._list_one, leak, self._live())
        of_leak = leak.holder if leak.sandbox else ""
        return (await self._judge(listed, lambda container_id: container_id == of_leak)).findings.get(leak.id)

    async def _judge(self, listed: _Listed, includes: Callable[[ContainerId], bool]) -> Judgement:
        """Judge the *listed* resources and the sandboxes whose container *includes* accepts."""
        runtime, reason, absent = await self._ask_runtime()
        sandboxes = {key: box for key, box in self._state.sandboxes.items() if includes(key.container_id)}
        netns = {key: (box.netns, box.plan.netns_inode if box.plan else 0) for key, box in sandboxes.items()}
        lost = await asyncio.to_thread(lambda: {key: how for key, at in netns.items() if (how := why_gone(*at))})
        live = self._live()
        suspects = [held for held in listed.files if held.holder not in live and not _has_holder(runtime, held)]
        timed = await asyncio.to_thread(_timed, suspects)
        in_use: frozenset[str] = frozenset()
        if any(held.kind in _WITH_ADDRESS for held in timed):
            try:
                in_use = await asyncio.to_thread(addresses_in_use)
            except OSError as error:
                listed.unseen.append(f"which addresses are in use: {error.strerror}")
                listed.unscanned.add("file/")
                timed = [held for held in timed if held.kind not in _WITH_ADDRESS]
        now = time.time()
        judgement = judge(
            Facts(
                boot_id=self._boot_id,
                now=now,
                booted=now - time.clock_gettime(time.CLOCK_BOOTTIME),
                runtime=runtime,
                reason=reason,
                absent=absent,
                # The current state: an event since the check of the namespace overrules it.
                sandboxes=tuple(box for key in sandboxes if (box := self._state.sandboxes.get(key)) is not None),
                live=self._live(),
                busy=self._busy(),
                lost={key: how for key, how in lost.items() if self._state.sandboxes.get(key) is sandboxes[key]},
                files=tuple(timed),
                links=tuple(listed.links),
                in_use=in_use,
            )
        )
        judgement.unseen[:0] = listed.unseen
        judgement.unscanned |= listed.unscanned
        return judgement

    async def _ask_runtime(self) -> tuple[Inventory | None, str, bool]:
        try:
            return await self._runtime.inventory(), "", False
        except RuntimeUnknownError as error:
            return None, str(error), error.absent

    def _live(self) -> frozenset[ContainerId]:
        return frozenset(key.container_id for key in self._state.sandboxes)

    def _busy(self) -> frozenset[ContainerId]:
        return frozenset(
            pending.event.sandbox
            for pending in self._state.pending.values()
            if isinstance(pending.event.data, AttachRequested | DetachRequested)
        )

    def _list(self, live: frozenset[ContainerId]) -> _Listed:
        listed = _Listed()
        for what, read in (
            ("addresses of host-local", lambda: held_files.addresses(self._footprint.folders())),
            ("device information", lambda: held_files.device_infos(self._footprint.device_info)),
            ("results of ADDs", lambda: held_files.cached_results(self._results_dir)),
        ):
            try:
                listed.files += read()
            except OSError as error:
                listed.unseen.append(f"{what}: {error.filename} can't be read: {error.strerror}")
                listed.unscanned.add("file/")
        try:
            listed.links = self._ownerless_links(live)
        except OSError as error:
            listed.unseen.append(f"links of the node: {error.strerror}")
            listed.unscanned.add("link/")
        return listed

    def _list_one(self, leak: Leak, live: frozenset[ContainerId]) -> _Listed:
        if leak.kind is LeakKind.LINK_UNOWNED:
            return _Listed(links=[link for link in self._ownerless_links(live) if link_leak_id(link.name) == leak.id])
        if leak.sandbox:
            return _Listed()
        path = Path(leak.path)
        if leak.kind in _WITH_ADDRESS:
            found = [
                held_files.address(each, path.name)
                for each in self._footprint.folders()
                if each.path == str(path.parent)
            ]
            return _Listed(files=[held for held in found if held is not None and held.holder == leak.holder])
        held = HeldFile(
            kind=leak.kind, path=leak.path, what=leak.what, holder=leak.holder, ifname=leak.ifname, network=leak.network
        )
        return _Listed(files=[held])

    def _ownerless_links(self, live: frozenset[ContainerId]) -> list[HeldLink]:
        """Return the node ends of containers that are not *live*; drop the ends that do not exist any more."""
        ends = self._footprint.ends(live)
        if not ends:
            return []
        with Netlink.on_node() as node:
            present = {NodeEnd(link.name, link.mac) for link in links.list_all(node) if _may_be_ours(link)}
        self._footprint.forget(ends.keys() - present)
        return [held for end, held in ends.items() if end in present]


def node_link_names() -> frozenset[str]:
    """Return the names of the node's links. Blocking. Raises OSError."""
    with Netlink.on_node() as node:
        return frozenset(link.name for link in links.list_all(node))


def _may_be_ours(link: Link) -> bool:
    return link.kind == "veth"


def _has_holder(runtime: Inventory | None, held: HeldFile) -> bool:
    return runtime is not None and bool(held.holder) and held.holder in runtime.present


def _timed(suspects: list[HeldFile]) -> list[HeldFile]:
    """Return the *suspects* that exist, with their times; of cached results only those of Plumbline's ADDs."""
    found = [
        held if held.kind in _WITH_ADDRESS else held_files.timed(held)
        for held in suspects
        if held.kind is not LeakKind.RESULT_STALE or held_files.is_ours(held)
    ]
    return [held for held in found if held is not None]
