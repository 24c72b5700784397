"""CHECK of an interface that another interface of the container has as a member."""

from __future__ import annotations

import os
from typing import Any

import pytest

from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kinds import macvlan
from tests.support.plugins.kernel_view import configure, container, node
from tests.support.plugins.native_harness import call, card, needs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

MACVLAN: dict[str, Any] = {"type": "macvlan", "master": "par0"}


def check_as_member(kind: str) -> None:
    """Make a macvlan interface, give it to a master of *kind* together with the master's MAC address, and CHECK it."""
    with node(), container() as netns:
        card()
        made = macvlan.add(call(MACVLAN, netns), None)
        configure(
            f"link add master0 address 02:00:00:00:00:09 type {kind}",
            "link set net1 down",
            "link set net1 master master0",
            "link set net1 address 02:00:00:00:00:09 up",
            netns=netns,
        )
        macvlan.check(call(MACVLAN, netns, prev_result=made))


def test_port_of_a_bridge_must_keep_its_mac_address() -> None:
    with pytest.raises(NativeError, match="has MAC address 02:00:00:00:00:09"):
        check_as_member("bridge")


@needs("bond")
def test_member_of_a_bond_may_have_the_bonds_mac_address() -> None:
    check_as_member("bond mode active-backup")
