"""Find the namespaces of the sandboxes that the files tell of, and look what is in them.

A sandbox is only taken for a living one on a positive match: the path that its files name is a network namespace, or
its addresses are found in one. Nothing is changed. Call it from a thread that does nothing else meanwhile.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from events.fold import Attachment, AttachmentPhase
from events.schema import Phase
from nodeworker.errors import RequestFailedError
from nodeworker.host.adopt.plan import Adoption, Place
from nodeworker.host.adopt.read import Files
from nodeworker.host.adopt.records import Entry
from nodeworker.kernel.namespaces import Namespace
from nodeworker.kernel.rtnetlink import addresses, links
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.planning.resolve.default_route import wanted
from nodeworker.sandboxes import default_route

NETNS_DIR = Path("/run/netns")
"""Where runtimes mount the namespaces that they make."""

NO_INODE = 1
"""Of no namespace: the kernel numbers them from far above. Whatever comes to the path is another one."""


class Inside(msgspec.Struct, frozen=True):
    """What is in a namespace."""

    links: frozenset[str]
    identities: frozenset[str]
    """Addresses, without prefix length, and MACs."""
    inode: int
    """Of the namespace."""


class Places:
    """The namespaces of a node, as they are when they are first looked at."""

    def __init__(self, netns_dir: Path = NETNS_DIR) -> None:
        self._netns_dir = netns_dir
        self._all: dict[str, Inside] | None = None

    def find(self, files: Files) -> Place:
        """Return where the sandbox of *files* is."""
        stated = stated_netns(files)
        for path in stated:
            inside = _look(path)
            # A process ID may be another process' by now; a runtime's own names do not come back.
            if inside and (not path.startswith("/proc/") or inside.identities & identities(files)):
                return Place(netns=path, links=inside.links, inode=inside.inode)
        if stated:
            return Place(netns=stated[0], inode=NO_INODE if stated[0].startswith("/proc/") else 0)
        return self._find_by(identities(files))

    def _find_by(self, wanted: frozenset[str]) -> Place:
        """Return the only place that has all of *wanted*."""
        if self._all is None:
            self._all = {path: inside for path in _mounted(self._netns_dir) if (inside := _look(path))}
        matches = [(path, inside) for path, inside in self._all.items() if wanted and wanted <= inside.identities]
        if len(matches) != 1:
            return Place()
        ((path, inside),) = matches
        return Place(netns=path, links=inside.links, inode=inside.inode)


def stated_netns(files: Files) -> tuple[str, ...]:
    """Return the paths that the files name as the sandbox's namespace: the runtime's first, each once."""
    entries = [*([files.request] if files.request else []), *files.entries]
    stated = [entry.netns for entry in entries]
    for entry in entries:
        stated += [interface["sandbox"] for interface in _interfaces(entry) if interface.get("sandbox")]
    return tuple(dict.fromkeys(path for path in stated if path.startswith("/") and "\0" not in path))


def identities(files: Files) -> frozenset[str]:
    """Return the addresses, without prefix length, and the MACs that the results gave to interfaces of the sandbox."""
    found: set[str] = set()
    for entry in files.entries:
        found |= {str(interface["mac"]).lower() for interface in _interfaces(entry) if interface.get("mac")}
        found |= {str(address) for address in _addresses(entry)}
    return frozenset(found)


def without_false_claims(adoption: Adoption, place: Place) -> Adoption:
    """Return *adoption* without its claims to the pod's default routes unless the kernel has those routes there.

    Multus 4.2.2 and later do not move them, and taking a pod over must not either.
    """
    plan = adoption.data.plan
    attachments = tuple(
        Attachment(plan=each, phase=AttachmentPhase.ATTACHED, result=result)
        for each, result in zip(plan.attachments, adoption.data.results, strict=True)
    )
    if place.links is None:
        return adoption
    try:
        for route in wanted(attachments):
            default_route.check(place.netns, route, plan.pod)
    except RequestFailedError as error:
        unclaimed = tuple(replace(each, default_route=None) for each in plan.attachments)
        data = replace(adoption.data, plan=replace(plan, attachments=unclaimed))
        note = f"its default routes are left as they are, against its annotation: {error.failure.message}"
        return replace(adoption, data=data, notes=(*adoption.notes, note))
    return adoption


def _look(path: str) -> Inside | None:
    """Return what is in the namespace at *path*, None if there is no namespace but the node's own."""
    try:
        with Namespace(path, Phase.CHECK) as container:
            netlink, inode = Netlink.within(container), os.fstat(container.fd).st_ino
    except RequestFailedError:
        return None
    with netlink:
        found = links.every(netlink)
        seen = {link.mac for link in found if link.mac}
        for link in found:
            seen |= {str(assigned.address.ip) for assigned in addresses.of(netlink, link.index)}
    return Inside(frozenset(link.name for link in found), frozenset(seen), inode)


def _mounted(folder: Path) -> Iterable[str]:
    try:
        return sorted(str(path) for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return ()


def _interfaces(entry: Entry) -> list[dict[str, Any]]:
    return [each for each in _members(entry, "interfaces") if isinstance(each.get("sandbox", ""), str)]


def _addresses(entry: Entry) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    texts = [each.get("address", "") for each in _members(entry, "ips")]
    texts += [family.get("ip", "") for key in ("ip4", "ip6") if isinstance(family := _result(entry).get(key), dict)]
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_interface(text).ip)
        except ValueError:
            continue
    return found


def _members(entry: Entry, key: str) -> list[dict[str, Any]]:
    members = _result(entry).get(key)
    return [each for each in members if isinstance(each, dict)] if isinstance(members, list) else []


def _result(entry: Entry) -> dict[str, Any]:
    result: Any = msgspec.json.decode(entry.result)
    return result if isinstance(result, dict) else {}
