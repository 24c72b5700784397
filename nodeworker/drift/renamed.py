"""Find interfaces that a program in the container renamed, as KubeVirt does to make them ports of a virtual machine.

The program owns such an interface from then on, and may put another in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from nodeworker.drift.expected import ExpectedLink
from nodeworker.kernel.rtnetlink.links import Link


def renamed(
    expected: Collection[ExpectedLink],
    container: Mapping[str, Link],
    parents: Mapping[str, Link],
    node_end: Callable[[Link], Link | None],
) -> Mapping[str, str]:
    """Return the present name of each *expected* interface that has another one in the *container*.

    *parents* has links of the node by name; *node_end* returns the node's end of a veth pair.
    """
    names: dict[str, str] = {}
    for each in expected:
        if each.ifname in container and _is_of(each, container[each.ifname], parents, node_end):
            continue
        others = (link for name, link in container.items() if name not in each.planned | set(names.values()))
        if found := next((link for link in others if _is_of(each, link, parents, node_end)), None):
            names[each.ifname] = found.name
    return names


def _is_of(
    expected: ExpectedLink, link: Link, parents: Mapping[str, Link], node_end: Callable[[Link], Link | None]
) -> bool:
    """Return whether *link* rests on the parent of the *expected* one, or its other end is the recorded one."""
    if link.parent_netnsid is None:
        return False
    parent = parents.get(expected.parent)
    if parent is not None and (link.kind, link.parent) == (expected.kind, parent.index):
        return True
    port = node_end(link) if expected.node_ends else None
    return port is not None and port.name in expected.node_ends
