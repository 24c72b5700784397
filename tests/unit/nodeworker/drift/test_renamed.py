"""Which link of a container is an expected one under another name, as values."""

from __future__ import annotations

from msgspec.structs import replace

from nodeworker.drift.expected import ExpectedLink
from nodeworker.drift.renamed import renamed
from nodeworker.kernel.rtnetlink.links import Link
from tests.unit.nodeworker.drift.test_differences import LINK, UPLINK, wanted

(MACVLAN,) = wanted()
SECOND = replace(MACVLAN, ifname="net2")
BOTH = (
    replace(MACVLAN, planned=frozenset({"net1", "net2"})),
    replace(SECOND, planned=frozenset({"net1", "net2"})),
)


def names(expected: tuple[ExpectedLink, ...], *links: Link, ends: tuple[Link, ...] = ()) -> dict[str, str]:
    container = {link.name: link for link in links}
    by_index = {end.index: end for end in ends}
    return dict(renamed(expected, container, {"uplink0": UPLINK}, lambda link: by_index.get(link.parent)))


def test_only_a_link_on_the_same_parent_is_the_renamed_one() -> None:
    nic = replace(LINK, name="net1-nic")
    assert names((MACVLAN,), nic) == {"net1": "net1-nic"}
    assert names((MACVLAN,), LINK, nic) == {}
    assert names((MACVLAN,), replace(LINK, kind="dummy", parent=0), nic) == {"net1": "net1-nic"}
    assert names((MACVLAN,), replace(nic, parent=8)) == {}
    assert names((MACVLAN,), replace(nic, parent_netnsid=None)) == {}
    assert names((MACVLAN,), replace(nic, kind="ipvlan")) == {}


def test_an_interface_of_another_network_is_not_the_renamed_one() -> None:
    second = replace(LINK, index=3, name="net2")
    assert names(BOTH, second) == {}
    assert names(BOTH, replace(second, name="nic")) == {"net1": "nic"}


def test_a_veth_is_the_renamed_one_if_its_other_end_is_recorded() -> None:
    (bridged,) = wanted({"type": "bridge", "bridge": "br0"})
    bridged = replace(bridged, node_ends=frozenset({"br0", "veth1"}))
    nic, end = replace(LINK, name="nic", kind="veth", parent=10), replace(UPLINK, index=10, name="veth1")
    assert names((bridged,), nic, ends=(end,)) == {"net1": "nic"}
    assert names((bridged,), nic, ends=(replace(end, name="veth2"),)) == {}
    assert names((bridged,), nic) == {}
