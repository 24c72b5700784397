"""Find the network namespaces of the sandboxes in the files, and read their interfaces and addresses.

A sandbox counts as living only on a positive match: the path in its files is a network namespace, or exactly one
namespace has its addresses. Read-only and blocking: call it on a separate thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from events.fold import Attachment, AttachmentPhase
from events.schema import Phase
from nodeworker.errors import RequestFailedError
from nodeworker.host.adopt.plan import Adoption, FoundNamespace
from nodeworker.host.adopt.read import SandboxFiles
from nodeworker.host.adopt.records import Entry
from nodeworker.kernel.namespaces import Namespace
from nodeworker.kernel.rtnetlink import addresses, links
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.planning.resolve.route_claims import claimed_routes
from nodeworker.plugins.spec.addresses import Address, with_prefix
from nodeworker.sandboxes import default_route

NETNS_DIR = Path("/run/netns")
"""The folder in which runtimes mount network namespaces."""

NO_INODE = 1
"""The inode of no namespace: the kernel numbers them from far above. Any namespace at the path is another one."""


class Contents(msgspec.Struct, frozen=True):
    """The contents of a namespace."""

    links: frozenset[str]
    identities: frozenset[str]
    """Addresses, without prefix length, and MACs."""
    inode: int
    """The inode of the namespace."""


class NamespaceFinder:
    """Finds the namespaces of sandboxes. Each namespace is read once."""

    def __init__(self, netns_dir: Path = NETNS_DIR) -> None:
        self._netns_dir = netns_dir
        self._all: dict[str, Contents] | None = None

    def find(self, files: SandboxFiles) -> FoundNamespace:
        """Return the namespace of the sandbox of *files*."""
        recorded = recorded_netns(files)
        for path in recorded:
            contents = _read(path)
            # Another process may have got the process ID since; a runtime's own names do not come back.
            if contents and (not path.startswith("/proc/") or contents.identities & identities(files)):
                return FoundNamespace(netns=path, links=contents.links, inode=contents.inode)
        if recorded:
            return FoundNamespace(netns=recorded[0], inode=NO_INODE if recorded[0].startswith("/proc/") else 0)
        return self._find_by(identities(files))

    def _find_by(self, searched: frozenset[str]) -> FoundNamespace:
        """Return the only namespace that has all *searched* identities."""
        if self._all is None:
            self._all = {path: contents for path in _mounted(self._netns_dir) if (contents := _read(path))}
        matches = [(path, found) for path, found in self._all.items() if searched and searched <= found.identities]
        if len(matches) != 1:
            return FoundNamespace()
        ((path, contents),) = matches
        return FoundNamespace(netns=path, links=contents.links, inode=contents.inode)


def recorded_netns(files: SandboxFiles) -> tuple[str, ...]:
    """Return the namespace paths in the files: the runtime's first, each once."""
    entries = [*([files.request] if files.request else []), *files.entries]
    paths = [entry.netns for entry in entries]
    for entry in entries:
        paths += [interface["sandbox"] for interface in _interfaces(entry) if interface.get("sandbox")]
    return tuple(dict.fromkeys(path for path in paths if path.startswith("/") and "\0" not in path))


def identities(files: SandboxFiles) -> frozenset[str]:
    """Return the addresses, without prefix length, and the MACs in the results of the sandbox."""
    found: set[str] = set()
    for entry in files.entries:
        found |= {str(interface["mac"]).lower() for interface in _interfaces(entry) if interface.get("mac")}
        found |= {str(address) for address in _addresses(entry)}
    return frozenset(found)


def without_false_claims(adoption: Adoption, namespace: FoundNamespace) -> Adoption:
    """Return *adoption*, without its claims to the pod's default routes unless the kernel has those routes.

    Multus 4.2.2 and later do not move default routes, and an adoption must not move them either.
    """
    plan = adoption.data.plan
    attachments = tuple(
        Attachment(plan=each, phase=AttachmentPhase.ATTACHED, result=result)
        for each, result in zip(plan.attachments, adoption.data.results, strict=True)
    )
    if namespace.links is None:
        return adoption
    try:
        for route in claimed_routes(attachments):
            default_route.check(namespace.netns, route)
    except RequestFailedError as error:
        unclaimed = tuple(replace(each, default_route=None) for each in plan.attachments)
        data = replace(adoption.data, plan=replace(plan, attachments=unclaimed))
        note = f"its default routes stay as they are, against its annotation: {error.failure.message}"
        return replace(adoption, data=data, notes=(*adoption.notes, note))
    return adoption


def _read(path: str) -> Contents | None:
    """Return the contents of the namespace at *path*; None: there is none, or it is the node's own."""
    try:
        with Namespace(path, Phase.CHECK) as container:
            netlink, inode = Netlink.within(container), os.fstat(container.fd).st_ino
    except RequestFailedError:
        return None
    with netlink:
        found = links.list_all(netlink)
        found_identities = {link.mac for link in found if link.mac}
        found_identities |= {str(assigned.address.ip) for assigned in addresses.list_all(netlink)}
    return Contents(frozenset(link.name for link in found), frozenset(found_identities), inode)


def _mounted(folder: Path) -> Iterable[str]:
    try:
        return sorted(str(path) for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return ()


def _interfaces(entry: Entry) -> list[dict[str, Any]]:
    return [each for each in _members(entry, "interfaces") if isinstance(each.get("sandbox", ""), str)]


def _addresses(entry: Entry) -> list[Address]:
    texts = [each.get("address", "") for each in _members(entry, "ips")]
    texts += [family.get("ip", "") for key in ("ip4", "ip6") if isinstance(family := _result(entry).get(key), dict)]
    found: list[Address] = []
    for text in texts:
        try:
            found.append(with_prefix(str(text)).ip)
        except ValueError:
            continue
    return found


def _members(entry: Entry, key: str) -> list[dict[str, Any]]:
    members = _result(entry).get(key)
    return [each for each in members if isinstance(each, dict)] if isinstance(members, list) else []


def _result(entry: Entry) -> dict[str, Any]:
    result: Any = msgspec.json.decode(entry.result)
    return result if isinstance(result, dict) else {}
