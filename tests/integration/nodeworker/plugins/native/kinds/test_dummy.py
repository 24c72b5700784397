"""A dummy interface in a pod: up, with its addresses, and alone.

Where the kernel has none, a bridge without ports takes its place, so that all but the kind itself is put to the test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.kinds import dummy
from tests.support.plugins.kernel_view import container, node
from tests.support.plugins.native_harness import (
    BOTH,
    answer,
    call,
    cut_everywhere,
    encoded,
    ip,
    is_refused,
    kernel_has,
    late,
    names,
    shown,
    works_or_names_its_module,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DUMMY: dict[str, Any] = {"type": "dummy"}


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        yield path


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the kind of interface that stands for a dummy."""
    if not kernel_has("dummy"):
        monkeypatch.setattr(dummy, "TYPE", "bridge")
    return dummy.TYPE


def test_it_is_up_with_its_addresses_and_the_resolver_of_ipam(netns: str, kind: str) -> None:
    ipam = answer("10.77.0.5/32", "fd77::5/128", dns={"domain": "example.com"}, routes=[{"dst": "10.88.0.0/16"}])
    result = dummy.add(call(DUMMY | {"dns": {"domain": "example.org"}}, netns), ipam)
    seen = shown("addr show net1", netns)[0]
    assert "UP" in seen["flags"]
    assert seen["linkinfo"]["info_kind"] == kind
    assert {each["local"] for each in seen["addr_info"] if each["scope"] == "global"} == {"10.77.0.5", "fd77::5"}
    assert [each["dst"] for each in shown("route show dev net1", netns)] == ["10.88.0.0/16"]
    assert encoded(result) == {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "mac": seen["address"], "sandbox": netns}],
        "ips": [{"interface": 0, "address": "10.77.0.5/32"}, {"interface": 0, "address": "fd77::5/128"}],
        "routes": [{"dst": "10.88.0.0/16"}],
        "dns": {"domain": "example.com"},
    }
    assert names() == {"lo"}


@pytest.mark.usefixtures("kind")
def test_an_add_or_del_interrupted_anywhere_can_be_repeated() -> None:
    # The MAC address is random: it is that of the first ADD that got so far.
    cut_everywhere(dummy, DUMMY, BOTH, lambda _: None)


@pytest.mark.usefixtures("kind")
def test_a_del_succeeds_on_anything_that_is_gone() -> None:
    late(dummy, DUMMY, BOTH, lambda _: None)


@pytest.mark.parametrize(("ipam", "words"), [(None, "add ipam to net"), (answer(), "assigned no address to net1")])
def test_an_interface_without_addresses_is_refused(netns: str, ipam: Any, words: str) -> None:
    is_refused(dummy, call(DUMMY, netns), ipam, words)
    assert names(netns) == {"lo"}


@pytest.mark.usefixtures("kind")
def test_a_foreign_interface_is_left_unchanged(netns: str) -> None:
    ip("link add net1 type veth peer name other", netns)
    with pytest.raises(NativeError, match="has another interface net1 already"):
        dummy.add(call(DUMMY, netns), BOTH)
    assert "net1" in names(netns)


DAMAGE = [
    ("link set net1 down", "interface net1 is down"),
    ("link del net1", "interface net1 is gone"),
    ("addr del 10.77.0.5/24 dev net1", "lost its address 10.77.0.5/24"),
    ("link set net1 address 02:00:00:00:00:99", "has MAC address 02:00:00:00:00:99"),
]


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize(("damage", "words"), DAMAGE, ids=[damage for damage, _ in DAMAGE])
def test_check_reports_differences_from_the_record(netns: str, damage: str, words: str) -> None:
    asked = call(DUMMY, netns, prev_result=dummy.add(call(DUMMY, netns), BOTH))
    dummy.check(asked)
    ip(damage, netns)
    with pytest.raises(NativeError, match=words):
        dummy.check(asked)


def test_a_missing_kernel_module_is_named(netns: str) -> None:
    works_or_names_its_module(dummy, "dummy", call(DUMMY, netns), BOTH)


@pytest.mark.parametrize(
    ("options", "reason"), [({"ipam": {"type": "static"}}, ""), ({}, "no ipam"), ({"mtu": 1400}, "mtu")]
)
def test_options_of_the_reference_plugin_only_are_not_native(options: dict[str, Any], reason: str) -> None:
    said = dummy.unsupported({"cniVersion": "1.0.0", "name": "net"} | DUMMY | options)
    assert (reason in said, bool(said)) == (True, bool(reason))
