"""Free what nobody owns, and nothing else: what is there is compared with what was judged, in the last moment.

Everything here blocks; call it from a thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from events.schema import ContainerId, Leak
from nodeworker.kernel.rtnetlink import links
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.leaks.evidence import held_files
from nodeworker.leaks.evidence.footprint import Folder, NodeEnd
from nodeworker.leaks.judge import HeldFile
from nodeworker.plugins.native.ipam import reservations


class ChangedError(Exception):
    """It is not what was judged any more; the text is a clause that says why."""


def free_address(leak: Leak, owned: Callable[[ContainerId], bool]) -> None:
    """Remove the file of an address while host-local's lock is held; it may be gone.

    *owned* says whether a container is one of the ledger's. Raises ChangedError, OSError, ``store.BusyError``.
    """
    path = Path(leak.path)
    try:
        with reservations.locked(str(path.parent)) as folder:
            held = held_files.address(Folder(str(path.parent), leak.network), path.name)
            if held is None:
                return
            _compare(held, leak, owned)
            address = reservations.address_of(path.name)
            if address is None or not folder.free(address, held.content):
                raise ChangedError("its file was written to meanwhile")
    except FileNotFoundError:
        return


def free_addresses_of(folder: Folder, container_id: ContainerId, ifname: str) -> list[str]:
    """Free what host-local's *folder* holds for an interface that is no more; return the addresses.

    Raises OSError, ``store.BusyError``.
    """
    try:
        with reservations.locked(folder.path) as held:
            freed: list[str] = []
            # The second is what plugins before 0.8 wrote, which told no interfaces apart.
            for owner in (f"{container_id}\r\n{ifname}".encode(), container_id.encode()):
                freed += [str(address) for address in held.held_by(owner) if held.free(address, owner)]
            return freed
    except FileNotFoundError:
        return []


def free_file(leak: Leak) -> None:
    """Remove the file; it may be gone. Raises OSError."""
    Path(leak.path).unlink(missing_ok=True)


def free_link(end: NodeEnd) -> bool:
    """Take the node's end of a wire away if it is there and the same; return whether it was. Raises OSError."""
    with Netlink.on_node() as node:
        link = links.find(node, links.named(end.name))
        if link is None or (link.kind, link.mac) != ("veth", end.mac):
            return False
        node.do(links.delete(link.index))
        return True


def is_gone(leak: Leak) -> bool:
    """Return whether there is nothing left to free of *leak*, which is a file or a link. Raises OSError."""
    if leak.path:
        return not os.path.lexists(leak.path)
    with Netlink.on_node() as node:
        return links.find(node, links.named(end_of(leak).name)) is None


def end_of(leak: Leak) -> NodeEnd:
    """Return the interface that a leaked link is."""
    name, _, mac = leak.what.partition(" ")
    return NodeEnd(name, mac)


def _compare(held: HeldFile, leak: Leak, owned: Callable[[ContainerId], bool]) -> None:
    if (held.holder, held.ifname) != (leak.holder, leak.ifname):
        raise ChangedError(f"it is held for {held.holder[:12] or 'nobody'} {held.ifname} by now")
    if held.holder and owned(held.holder):
        raise ChangedError(f"the ledger has container {held.holder[:12]} by now")
