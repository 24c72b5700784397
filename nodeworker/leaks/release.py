"""Free a leak and nothing else: each function compares the resource with the judged leak immediately before it acts.

Blocking: call it on a thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from events.schema import ContainerId, Leak
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.leaks.evidence import held_files
from nodeworker.leaks.evidence.footprint import NodeEnd
from nodeworker.leaks.judge import HeldFile
from nodeworker.plugins.native.ipam import reservations
from nodeworker.plugins.native.ipam.recorded import AddressFolder


class ChangedError(Exception):
    """The resource differs from the judged leak; the text is a clause with the difference."""


def free_address(leak: Leak, owned: Callable[[ContainerId], bool]) -> None:
    """Remove the file of an address under host-local's lock; it may be gone already.

    *owned* returns whether the ledger has a container. Raises ChangedError, OSError, ``reservations.BusyError``.
    """
    path = Path(leak.path)
    try:
        with reservations.locked(str(path.parent)) as folder:
            held = held_files.address(AddressFolder(str(path.parent), leak.network), path.name)
            if held is None:
                return
            _compare(held, leak, owned)
            address = reservations.address_of(path.name)
            if address is None or not folder.free(address, held.content):
                raise ChangedError("its file has changed since")
    except FileNotFoundError:
        return


def free_addresses_of(folder: AddressFolder, container_id: ContainerId, ifname: str) -> list[str]:
    """Free the addresses of an interface in host-local's *folder*; return them.

    Raises OSError, ``reservations.BusyError``.
    """
    try:
        with reservations.locked(folder.path) as held:
            freed: list[str] = []
            # Plugins before 0.8 wrote the second form, which does not name the interface.
            for owner in (reservations.owner(container_id, ifname), container_id.encode()):
                freed += [str(address) for address in held.held_by(owner) if held.free(address, owner)]
            return freed
    except FileNotFoundError:
        return []


def free_file(leak: Leak) -> None:
    """Remove the file; it may be gone already. Raises OSError."""
    Path(leak.path).unlink(missing_ok=True)


def free_link(end: NodeEnd) -> bool:
    """Delete the node's end of a veth pair if name and MAC match; return whether it did. Raises OSError."""
    with Netlink.on_node() as node:
        link = links.find(node, links.by_name(end.name))
        if link is None or (link.kind, link.mac) != ("veth", end.mac):
            return False
        node.do(links.delete(link.index))
        return True


def is_gone(leak: Leak) -> bool:
    """Return whether the file or link of *leak* is gone. Raises OSError."""
    if leak.path:
        return not os.path.lexists(leak.path)
    with Netlink.on_node() as node:
        return links.find(node, links.by_name(end_of(leak).name)) is None


def end_of(leak: Leak) -> NodeEnd:
    """Return the node end of a leaked link."""
    name, _, mac = leak.what.partition(" ")
    return NodeEnd(name, mac)


def _compare(held: HeldFile, leak: Leak, owned: Callable[[ContainerId], bool]) -> None:
    if (held.holder, held.ifname) != (leak.holder, leak.ifname):
        raise ChangedError(f"its owner is now {held.holder[:12] or 'unknown'} {held.ifname}")
    if held.holder and owned(held.holder):
        raise ChangedError(f"the ledger has container {held.holder[:12]} now")
