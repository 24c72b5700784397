"""Take rules in the packet filter away in the shadow of their interface, because both make the caller wait alike.

The kernel destroys rules after a while, for which it lets whoever closes a socket to the packet filter wait, 15 ms and
more. Taking an interface away lasts as long and waits for the same: so it is done in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from nodeworker.interfaces.ends import explaining, taken_away
from nodeworker.interfaces.native import Call
from nodeworker.netlink.nftables import Nftables

Deletion: TypeAlias = Callable[[Call, Nftables], None]


def taken_away_with(call: Call, deletions: Sequence[Deletion]) -> None:
    """Do *deletions* and take the container's interface away, also if they fail. Raises NativeError."""
    if not deletions:
        return taken_away(call)
    with explaining("talk to the packet filter"), Nftables.on_node() as filters:
        try:
            for delete in deletions:
                delete(call, filters)
        finally:
            taken_away(call)
    return None
