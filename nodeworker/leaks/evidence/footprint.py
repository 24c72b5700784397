"""Where sandboxes may leave something on the node: the folders and interfaces that the ledger tells of.

A sandbox that is detached is forgotten, and what it may have left must not be with it: folders are kept, and the
node's ends of its wires for as long as they are there.
"""

from __future__ import annotations

import os
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
from nodeworker.plugins.native.ipam.host_local import DATA_DIR


class _Ipam(msgspec.Struct, frozen=True):
    type: str = ""
    data_dir: str = msgspec.field(default="", name="dataDir")


class _Plugin(msgspec.Struct, frozen=True):
    name: str = ""
    type: str = ""
    ipam: _Ipam = _Ipam()


class _Interface(msgspec.Struct, frozen=True):
    name: str = ""
    mac: str = ""
    sandbox: str = ""


class _Result(msgspec.Struct, frozen=True):
    interfaces: tuple[_Interface, ...] = ()


_WITH_NODE_ENDS = frozenset({"bridge", "ptp"})
"""Plugins that tell in their result which end of their wire is on the node. Others may tell of the node's own links."""

_plugin = msgspec.json.Decoder(_Plugin)
_result = msgspec.json.Decoder(_Result)


class Folder(NamedTuple):
    """One of host-local's."""

    path: str
    network: str
    """What plugins know it by."""


class NodeEnd(NamedTuple):
    """An interface of the node, as the result of an attachment tells of it."""

    name: str
    mac: str


def folder_of(plugin: str) -> Folder | None:
    """Return where host-local keeps the addresses of the network that the configuration *plugin* is for, if it does."""
    try:
        config = _plugin.decode(plugin)
    except msgspec.MsgspecError:
        return None
    folder = config.ipam.data_dir or DATA_DIR
    if config.ipam.type != "host-local" or not folder.startswith("/") or "/" in config.name or not config.name:
        return None
    return Folder(os.path.join(folder, config.name), config.name)


def node_ends(plugin_type: str, result: str) -> list[NodeEnd]:
    """Return the interfaces of the node itself that *result* of that plugin tells of; a bridge may be among them."""
    if plugin_type not in _WITH_NODE_ENDS or '"interfaces"' not in result:
        return []
    try:
        interfaces = _result.decode(result).interfaces
    except msgspec.MsgspecError:
        return []
    return [NodeEnd(each.name, each.mac.lower()) for each in interfaces if each.name and each.mac and not each.sandbox]


class Footprint:
    """What was ever told of, as far as it matters still."""

    def __init__(self, device_info: str) -> None:
        self.device_info = device_info
        """Folder with the files that CNI plugins say in what devices are."""
        self._folders: set[Folder] = set()
        self._ends: dict[NodeEnd, HeldLink] = {}

    def learn(self, event: Event, there: frozenset[str] | None = None) -> None:
        """Take note of what *event* tells; of interfaces, if *there* says which there are, only of those."""
        match event.data:
            case AttachPlanned(attachments=attachments) | SandboxAdopted(plan=AttachPlanned(attachments=attachments)):
                self._learn_folders(attachments)
            case InterfaceAttached() as effect:
                self._learn_ends(event.sandbox, effect, there)
            case AttachCompleted(effects=effects):
                for effect in effects:
                    self._learn_ends(event.sandbox, effect, there)
            case _:
                pass

    def look_up(self, sandboxes: Mapping[SandboxKey, Sandbox]) -> None:
        """Take note of what the ledger has now."""
        for (container_id, _), sandbox in sandboxes.items():
            self._learn_folders(attachment.plan for attachment in sandbox.attachments)
            for attachment in sandbox.attachments:
                for end in node_ends(type_of(attachment.plan), attachment.result):
                    self._ends[end] = _held(end, container_id, attachment.plan.ifname, attachment.plan.network)

    def folders(self) -> list[Folder]:
        """Return host-local's folders."""
        return sorted(self._folders)

    def ends(self, live: frozenset[ContainerId]) -> dict[NodeEnd, HeldLink]:
        """Return the node's ends of wires of containers that are not *live*."""
        return {end: held for end, held in tuple(self._ends.items()) if held.holder not in live}

    def forget(self, ends: Iterable[NodeEnd]) -> None:
        """Forget interfaces that are not there any more."""
        for end in ends:
            self._ends.pop(end, None)

    def _learn_ends(self, holder: ContainerId, effect: InterfaceAttached, there: frozenset[str] | None) -> None:
        for end in node_ends(effect.runs[0].type if effect.runs else "", effect.result):
            if there is None or end.name in there:
                self._ends[end] = _held(end, holder, effect.ifname, effect.network)

    def _learn_folders(self, attachments: Iterable[PlannedAttachment]) -> None:
        for attachment in attachments:
            for plugin in attachment.plugins:
                if "host-local" in plugin and (folder := folder_of(plugin)) is not None:
                    self._folders.add(folder)


def type_of(plan: PlannedAttachment) -> str:
    """Return the type of the first plugin of *plan*."""
    try:
        return _plugin.decode(plan.plugins[0]).type
    except (msgspec.MsgspecError, IndexError):
        return ""


def _held(end: NodeEnd, container_id: ContainerId, ifname: IfName, network: NetworkName) -> HeldLink:
    return HeldLink(name=end.name, mac=end.mac, holder=container_id, ifname=ifname, network=network)
