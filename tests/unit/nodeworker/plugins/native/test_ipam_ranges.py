"""The order in which addresses are offered."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeworker.plugins.native.ipam.ranges import RangeConfig, RangeSet, candidates, range_of, range_sets
from nodeworker.plugins.spec.addresses import Address, address

POOLS = ["10.1.0.0/29", "10.2.0.0/28", "10.3.0.0/30"]


def ranges(*subnets: str) -> RangeSet:
    return range_sets((tuple(RangeConfig(subnet=each) for each in subnets),))[0]


def texts(found: list[Address]) -> list[str]:
    return [str(each) for each in found]


def test_addresses_are_tried_from_the_last_reserved_one_on() -> None:
    found = texts(list(candidates(ranges("10.1.0.0/29", "10.3.0.0/30"), address("10.1.0.4"))))
    assert found == ["10.1.0.5", "10.1.0.6", "10.3.0.2", "10.1.0.2", "10.1.0.3", "10.1.0.4"]


@given(
    subnets=st.lists(st.sampled_from(POOLS), min_size=1, unique=True),
    last=st.none() | st.ip_addresses(network="10.0.0.0/14") | st.ip_addresses(v=6),
)
def test_every_address_but_gateways_is_offered_once(subnets: list[str], last: Address | None) -> None:
    pool = ranges(*subnets)
    offered = list(candidates(pool, last))
    usable = [each for subnet in subnets for each in list(ipaddress.ip_network(subnet).hosts())[1:]]
    assert len(offered) == len(set(offered))
    assert set(offered) == set(usable)
    if last in offered:
        assert offered[-1] == last
    assert all(range_of(pool, each) for each in offered)


def test_an_invalid_range_is_named_by_set_and_index() -> None:
    good, bad = RangeConfig(subnet="10.1.0.0/24"), RangeConfig(subnet="10.2.0.0/24", range_start="10.3.0.1")
    with pytest.raises(ValueError, match=r"range set 1\[1\]: rangeStart 10\.3\.0\.1 is not in subnet 10\.2\.0\.0/24"):
        range_sets(((good,), (RangeConfig(subnet="10.5.0.0/24"), bad)))


def test_a_large_range_is_not_listed_to_find_the_next() -> None:
    assert next(candidates(ranges("fd00::/8"), address("fd00::ffff"))) == address("fd00::1:0")
