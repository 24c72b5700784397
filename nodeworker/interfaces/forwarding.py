"""Forwarding between the node's interfaces, which a gateway on the node needs."""

from __future__ import annotations

from collections.abc import Iterable

from nodeworker.interfaces import sysctl
from nodeworker.interfaces.addressing import Assignment
from nodeworker.interfaces.ends import explaining

_SWITCHES = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


def forward(given: Iterable[Assignment]) -> None:
    """Let the node forward packets of the families of *given*. Raises NativeError."""
    for version in sorted({each.address.version for each in given}):
        with explaining(f"enable forwarding of IPv{version} on the node"):
            sysctl.ensure(_SWITCHES[version], "1")
