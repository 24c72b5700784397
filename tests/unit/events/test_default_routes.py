"""The owner of a pod's default routes if one attachment claims them."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from events.default_routes import Claim, claims, is_dropped
from events.schema import IfName, NetworkName, PlannedAttachment


def plans(*claims: tuple[str, ...] | None) -> list[PlannedAttachment]:
    return [
        PlannedAttachment(
            network=NetworkName(f"d/n{index}"),
            ifname=IfName(f"net{index}"),
            cni_name="n",
            cni_version="1.0.0",
            plugins=("{}",),
            default_route=each,
        )
        for index, each in enumerate(claims)
    ]


def losses(found: tuple[Claim, ...]) -> set[tuple[int, int]]:
    """Return which of three attachments lose the routes of which families."""
    return {(index, family) for index in range(3) for family in (4, 6) if is_dropped(found, index, family)}


def brings_nothing(_: int) -> tuple[int, ...]:
    return ()


def test_without_a_claim_no_attachment_is_inspected() -> None:
    def unasked(_: int) -> tuple[int, ...]:
        raise AssertionError("results are read for nothing")

    assert claims(plans(None, None, None), unasked) == ()


@pytest.mark.parametrize(
    ("gateways", "families"), [(("10.0.0.1",), {4}), (("fd00::1",), {6}), (("fd00::1", "10.0.0.1"), {4, 6})]
)
def test_gateways_replace_all_default_routes_of_their_family(gateways: tuple[str, ...], families: set[int]) -> None:
    found = claims(plans(None, gateways, None), lambda _: (4, 6))
    assert losses(found) == {(index, family) for index in range(3) for family in families}


@pytest.mark.parametrize("brought", [(4,), (6,), (4, 6), ()])
def test_claim_without_gateways_drops_the_routes_of_others(
    brought: Collection[int],
) -> None:
    found = claims(plans(None, (), None), lambda index: brought if index == 1 else (4, 6))
    assert losses(found) == {(index, family) for index in (0, 2) for family in brought}
    assert [claim.gateways for claim in found] == [{}]


def test_claim_has_its_attachment_and_gateways() -> None:
    found = claims(plans(None, None, ("fd00::1", "10.0.0.1")), brings_nothing)
    assert found == (Claim(index=2, families=frozenset({4, 6}), gateways={4: "10.0.0.1", 6: "fd00::1"}),)


def test_claims_of_different_families_coexist() -> None:
    found = claims(plans(None, ("10.0.0.1",), ("fd00::1",)), brings_nothing)
    assert losses(found) == {(index, family) for index in range(3) for family in (4, 6)}
    assert [(claim.index, claim.gateways) for claim in found] == [(1, {4: "10.0.0.1"}), (2, {6: "fd00::1"})]
