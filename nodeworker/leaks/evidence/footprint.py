"""Remember where sandboxes may leave resources on the node: host-local's folders, and the node's ends of veth pairs.

The ledger's state forgets a detached sandbox, but the sandbox may have left resources. So the footprint keeps folders
for good, and veth ends for as long as they exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from events.fold import Sandbox, SandboxKey
from events.schema import (
    AttachCompleted,
    AttachPlanned,
    ContainerId,
    Event,
    IfName,
    InterfaceAttached,
    NetworkName,
    PlannedAttachment,
    SandboxAdopted,
)
from nodeworker.leaks.judge import HeldLink
from nodeworker.plugins.native.ipam.recorded import AddressFolder, folders_of


class _Plugin(msgspec.Struct, frozen=True):
    type: str = ""


class _Interface(msgspec.Struct, frozen=True):
    name: str = ""
    mac: str = ""
    sandbox: str = ""


class _Result(msgspec.Struct, frozen=True):
    interfaces: tuple[_Interface, ...] = ()


_WITH_NODE_ENDS = frozenset({"bridge", "ptp"})
"""Plugins whose result lists the node's end of their veth pair. Other results may list the node's own links."""

_plugin = msgspec.json.Decoder(_Plugin)
_result = msgspec.json.Decoder(_Result)


class NodeEnd(NamedTuple):
    """The node's end of a veth pair, as a result lists it."""

    name: str
    mac: str


def node_ends(plugin_type: str, result: str) -> list[NodeEnd]:
    """Return the node's links in the *result* of that plugin; a bridge may be among them."""
    if plugin_type not in _WITH_NODE_ENDS or '"interfaces"' not in result:
        return []
    try:
        interfaces = _result.decode(result).interfaces
    except msgspec.MsgspecError:
        return []
    return [NodeEnd(each.name, each.mac.lower()) for each in interfaces if each.name and each.mac and not each.sandbox]


class Footprint:
    """The host-local folders and node ends of all recorded sandboxes, as long as they may hold resources."""

    def __init__(self, device_info: str) -> None:
        self.device_info = device_info
        """The folder with the files in which CNI plugins describe devices."""
        self._folders: set[AddressFolder] = set()
        self._ends: dict[NodeEnd, HeldLink] = {}

    def learn(self, event: Event, present_links: frozenset[str] | None = None) -> None:
        """Add the folders and links of *event*; with *present_links*, only links with one of those names."""
        match event.data:
            case AttachPlanned(attachments=attachments) | SandboxAdopted(plan=AttachPlanned(attachments=attachments)):
                self._learn_folders(attachments)
            case InterfaceAttached() as effect:
                self._learn_ends(event.sandbox, effect, present_links)
            case AttachCompleted(effects=effects):
                for effect in effects:
                    self._learn_ends(event.sandbox, effect, present_links)
            case _:
                pass

    def learn_sandboxes(self, sandboxes: Mapping[SandboxKey, Sandbox]) -> None:
        """Add the folders and links of the *sandboxes* of the ledger."""
        for (container_id, _), sandbox in sandboxes.items():
            self._learn_folders(attachment.plan for attachment in sandbox.attachments)
            for attachment in sandbox.attachments:
                for end in node_ends(type_of(attachment.plan), attachment.result):
                    self._ends[end] = _held(end, container_id, attachment.plan.ifname, attachment.plan.network)

    def folders(self) -> list[AddressFolder]:
        """Return host-local's folders."""
        return sorted(self._folders)

    def ends(self, live: frozenset[ContainerId]) -> dict[NodeEnd, HeldLink]:
        """Return the node ends of containers that are not *live*."""
        return {end: link for end, link in tuple(self._ends.items()) if link.holder not in live}

    def forget(self, ends: Iterable[NodeEnd]) -> None:
        """Remove *ends* that do not exist any more."""
        for end in ends:
            self._ends.pop(end, None)

    def _learn_ends(self, holder: ContainerId, effect: InterfaceAttached, present_links: frozenset[str] | None) -> None:
        for end in node_ends(effect.runs[0].type if effect.runs else "", effect.result):
            if present_links is None or end.name in present_links:
                self._ends[end] = _held(end, holder, effect.ifname, effect.network)

    def _learn_folders(self, attachments: Iterable[PlannedAttachment]) -> None:
        for attachment in attachments:
            self._folders.update(folders_of(attachment))


def type_of(plan: PlannedAttachment) -> str:
    """Return the type of the first plugin of *plan*."""
    try:
        return _plugin.decode(plan.plugins[0]).type
    except (msgspec.MsgspecError, IndexError):
        return ""


def _held(end: NodeEnd, container_id: ContainerId, ifname: IfName, network: NetworkName) -> HeldLink:
    return HeldLink(name=end.name, mac=end.mac, holder=container_id, ifname=ifname, network=network)
