"""The host-device plugin: move a network card of the node into the container, and back on DEL.

The card's alias is its name on the node, as every version of the reference plugin expects. Each move is one message to
the kernel, renaming included: after an interruption, the card is entirely on one side.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from events.schema import Phase
from nodeworker.kernel import namespaces
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.addressing import assignments
from nodeworker.plugins.native.kit.container_link import build_result, configure_link
from nodeworker.plugins.native.kit.endpoints import Endpoints, error_context, find_link, name_taken, open_endpoints
from nodeworker.plugins.native.kit.plugin_config import PluginConfig, decode_config, decode_options, parse_mac
from nodeworker.plugins.native.kit.verify import check_addresses, check_link, recorded_result
from nodeworker.plugins.spec.results import DNS, Result

TYPE = "host-device"

_PCI = Path("/sys/bus/pci/devices")
_AUXILIARY = Path("/sys/bus/auxiliary/devices")
_KERNEL = Path("/sys/devices")
_BUS_ADDRESS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_:.\-]*")
_USERSPACE_DRIVERS = frozenset({"vfio-pci", "uio_pci_generic", "igb_uio"})
"""Drivers of cards that a program in the container drives; the kernel has no interface for them."""
_KERNEL_NAME = re.compile(r"dev[0-9]+")
"""The name that the kernel gives a card that returns to a node where its name is taken."""

log = structlog.get_logger(__name__)


class HostDevice(PluginConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration of a network of one card, which one of the keys names."""

    device: str = ""
    """Name on the node."""
    hwaddr: str = ""
    """MAC address."""
    kernelpath: str = ""
    """Path below ``/sys/devices``."""
    pci_bus_id: str = msgspec.field(default="", name="pciBusID")

    @property
    def bus_address(self) -> Any:
        """Its address on a bus; the runtime's takes precedence over the configuration's."""
        return self.runtime_config.get("deviceID") or self.pci_bus_id


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """The card that a configuration names, by one of ``name``, ``mac`` and ``listed``."""

    words: str
    """For error texts."""
    name: str = ""
    """Its configured name on the node, which may be an alternative name."""
    mac: str = ""
    listed: str = ""
    """Its current name in the node's sysfs."""
    bus_folder: Path | None = None
    """Its device, if the configuration names a PCI address."""

    @property
    def is_userspace(self) -> bool:
        """Whether it is bound to a driver of ``_USERSPACE_DRIVERS``. Raises NativeError if to none."""
        if self.bus_folder is None:
            return False
        try:
            return (self.bus_folder / "driver").resolve(strict=True).name in _USERSPACE_DRIVERS
        except OSError as error:
            raise NativeError(f"{self.words} has no driver on this node ({error.strerror})") from error

    def is_on_node(self, link: Link) -> bool:
        """Return whether *link*, on the node, is this card."""
        names = {link.name, *(link.altnames if self.name else ())}
        return (self.name or self.listed) in names or bool(self.mac and link.mac == self.mac)

    def is_lent(self, link: Link, ifname: str) -> bool:
        """Return whether *link*, in the container, is this card under the name *ifname*."""
        return link.name == ifname and bool(link.alias) and (not self.name or self.name in {link.alias, *link.altnames})


def unsupported(config: Mapping[str, Any]) -> str:
    """Return the first part of *config* that only the reference plugin supports, or an empty text."""
    options = decode_options(config, HostDevice)
    if isinstance(options, str):
        return options
    named = (options.device, options.hwaddr, options.kernelpath, options.bus_address)
    return "several keys name the device" if sum(map(bool, named)) > 1 else ""


def add(call: Call, ipam_result: Result | None) -> Result:
    """Move the card in and return the result, without an interface if it has none. Raises NativeError."""
    config = decode_config(call, HostDevice)
    card = _card(call, config)
    assigned = [] if ipam_result is None else assignments(call, ipam_result)
    dns = DNS() if ipam_result is None else config.dns  # as in the reference plugin
    if card.is_userspace:
        return replace(ipam_result or Result(cni_version=""), cni_version=config.cni_version, dns=dns)
    with open_endpoints(call, Phase.ADD) as ends:
        link = _ensure_lent(ends, call, card)
        configure_link(ends, call, link, assigned, ipam_result)
    return build_result(call, config.cni_version, link, ipam_result, dns)


def check(call: Call) -> None:
    """Raise NativeError unless the card is in the container as ``call.prev_result`` says."""
    before = recorded_result(call)
    if _card(call, decode_config(call, HostDevice)).is_userspace:
        return
    with open_endpoints(call, Phase.CHECK) as ends:
        check_addresses(ends, call, check_link(ends, call, before, None), before)


def delete(call: Call) -> None:
    """Return the card to the node with its earlier name; it may be back already. Raises NativeError."""
    config = decode_config(call, HostDevice)
    try:
        card = _card(call, config)
    except NativeError:
        return  # an ADD would have found no card either
    if not call.netns or not namespaces.is_namespace(call.netns):
        with Netlink.on_node() as node:
            _rename_returned(node, call, card)
        return
    with open_endpoints(call, Phase.DEL) as ends:
        link = find_link(ends.container, call.ifname)
        if link is None or not card.is_lent(link, call.ifname):
            return
        if find_link(ends.node, link.alias) is not None:
            raise NativeError(
                f"{call.ifname} can't return to the node as {link.alias}: rename the node's interface of that name"
            )
        with error_context(f"return {call.ifname} to the node as {link.alias}"):
            ends.container.do(links.change(link.index, name=link.alias, netns_fd=ends.netns.node_fd, alias=""))


def _ensure_lent(ends: Endpoints, call: Call, card: Card) -> Link:
    """Return the card in the container, moved now or by an interrupted ADD."""
    link = find_link(ends.container, call.ifname)
    if link is None:
        link = next(filter(card.is_on_node, _list_links(ends.node)), None)
        if link is None:
            raise NativeError(f"{card.words} is not on this node: it may be in another container")
        with error_context(f"move {link.name} into the container as {call.ifname}"):
            ends.node.do(links.change(link.index, name=call.ifname, netns_fd=ends.netns.fd, alias=link.name))
        link = find_link(ends.container, call.ifname)
    if link is None or not card.is_lent(link, call.ifname):
        raise name_taken(call)
    return link


def _rename_returned(node: Netlink, call: Call, card: Card) -> None:
    """Rename the card to its node name if the kernel returned it, under its container name."""
    on_node = _list_links(node)
    for link in on_node:
        returned = link.name == call.ifname or _KERNEL_NAME.fullmatch(link.name)
        if not returned or link.alias in {"", link.name} or not (link.alias == card.name or card.is_on_node(link)):
            continue
        if any(other.name == link.alias for other in on_node):
            log.warning(
                "card_not_renamed",
                network=call.network,
                sandbox=call.container_id[:12],
                card=link.name,
                wanted=link.alias,
                error="another interface of the node has that name",
            )
            continue
        with error_context(f"rename {link.name} to {link.alias}"):
            node.do(links.change(link.index, up=False), links.change(link.index, name=link.alias, alias=""))


def _list_links(node: Netlink) -> list[Link]:
    with error_context("list the interfaces of the node"):
        return links.list_all(node)


def _card(call: Call, config: HostDevice) -> Card:
    """Return the card that *config* names. Raises NativeError."""
    if config.device:
        return Card(words=f"device {config.device}", name=config.device)
    if config.hwaddr:
        mac = parse_mac("hwaddr", config.hwaddr, call.ifname)
        return Card(words=f"the device with MAC address {mac}", mac=mac)
    if config.kernelpath:
        folder = Path(os.path.normpath(config.kernelpath))
        if not folder.is_relative_to(_KERNEL):
            raise NativeError(f"kernelpath {config.kernelpath!r} is not below {_KERNEL}")
        return Card(words=f"the device at {folder}", listed=_listed(folder / "net"))
    return _on_bus(call, config.bus_address)


def _on_bus(call: Call, address: Any) -> Card:
    """Return the card at *address*, of the PCI or the auxiliary bus. Raises NativeError."""
    if not address:
        raise NativeError(f"network {call.network} names no device: set device, hwaddr, kernelpath or pciBusID")
    if not isinstance(address, str) or not _BUS_ADDRESS.fullmatch(address):
        raise NativeError(f"{address!r} is not a device address on the PCI or auxiliary bus")
    words, folder = f"device {address}", _PCI / address
    if not folder.exists() and (_AUXILIARY / address).exists():
        return Card(words=words, listed=_listed(_AUXILIARY / address / "net"))
    return Card(words=words, listed=_listed(folder / "net", *sorted(folder.glob("virtio*/net"))), bus_folder=folder)


def _listed(*folders: Path) -> str:
    """Return the first interface in the first existing folder of *folders*, empty if there is none."""
    for folder in folders:
        if folder.is_dir():
            return min(os.listdir(folder), default="")
    return ""
