"""Native static beside the executed one: the same results and the same error codes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeworker.plugins.native.ipam import static
from tests.support.plugins.ipam_harness import Outcome, executed, native, needs_plugins

pytestmark = needs_plugins

VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"]
WRITTEN: dict[str, Any] = {
    "addresses": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}, {"address": "FD00::5/64"}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "fd01::/16"}],
    "dns": {"nameservers": ["192.0.2.1"], "domain": "d", "search": ["a", "b"], "options": ["rotate"]},
}

CONFIGURED: dict[str, dict[str, Any]] = {
    "everything": WRITTEN,
    "nothing": {},
    "nulls": {"addresses": None, "routes": None, "dns": None},
    "two of a family": {"addresses": [{"address": "10.0.0.5/24"}, {"address": "10.1.0.5/24"}]},
    "twice the same": {"addresses": [{"address": "10.0.0.5/24"}, {"address": "10.0.0.5/24"}]},
    "an empty gateway": {"addresses": [{"address": "10.0.0.5/24", "gateway": ""}]},
    "a gateway elsewhere": {"addresses": [{"address": "10.0.0.5/24", "gateway": "192.0.2.1"}]},
    "a gateway that is none": {"addresses": [{"address": "10.0.0.5/24", "gateway": "x"}]},
    "IPv4 in IPv6 notation": {"addresses": [{"address": "::ffff:10.0.0.5/120", "gateway": "::ffff:10.0.0.1"}]},
    "no address": {"addresses": [{}]},
    "no prefix length": {"addresses": [{"address": "10.0.0.5"}]},
    "a whole family": {"addresses": [{"address": "10.0.0.5/0"}, {"address": "fd00::1/128"}]},
    "a number": {"addresses": [{"address": 5}]},
    "a text for a list": {"addresses": "10.0.0.5/24"},
}

REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "CNI_ARGS": ({}, "IP=10.9.0.4/16, 10.8.0.3/8;GATEWAY=10.9.0.1,10.0.0.9"),
    "a gateway for what is not in CNI_ARGS": ({}, "GATEWAY=10.0.0.9"),
    "a gateway that is none": ({}, "GATEWAY=x"),
    "an address that is none": ({}, "IP=10.9.0.4"),
    "empty CNI_ARGS": ({}, "IP=;GATEWAY="),
    "unknown CNI_ARGS": ({}, "MAC=02:00:00:00:00:01"),
    "unknown CNI_ARGS, to be ignored": ({}, "IgnoreUnknown=1;MAC=02:00:00:00:00:01;IP=10.9.0.4/16"),
    "args": ({"args": {"cni": {"ips": ["10.7.0.4/16"]}}}, "IP=10.9.0.4/16"),
    "runtimeConfig": (
        {"args": {"cni": {"ips": ["10.7.0.4/16"]}}, "runtimeConfig": {"ips": ["10.6.0.4/16", "fd00::9/64"]}},
        "",
    ),
    "bad CNI_ARGS behind runtimeConfig": ({"runtimeConfig": {"ips": ["10.6.0.4/16"]}}, "IP=10.6.0.4"),
    "no prefix length": ({"runtimeConfig": {"ips": ["10.6.0.4"]}}, ""),
    "empty lists": ({"args": {"cni": {"ips": []}}, "runtimeConfig": {"ips": []}}, ""),
    "nulls": ({"args": {"cni": None}, "runtimeConfig": {"ips": None}}, ""),
}


def config(ipam: dict[str, Any], version: str = "1.0.0", **others: Any) -> dict[str, Any]:
    return {"cniVersion": version, "name": "net", "type": "macvlan", "ipam": {"type": "static", **ipam}, **others}


def both(verb: str, asked: dict[str, Any], args: str = "") -> Outcome:
    theirs, ours = executed(verb, asked, args=args), native(verb, asked, args=args)
    assert ours.seen == theirs.seen, (ours.message, theirs.message)
    return ours


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CONFIGURED)
def test_configured_addresses_are_assigned_alike(name: str, version: str) -> None:
    asked = config(CONFIGURED[name], version)
    both("ADD", asked)
    both("DEL", asked)


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_take_precedence_over_the_configuration_alike(name: str) -> None:
    others, args = REQUESTS[name]
    both("ADD", config(WRITTEN, **others), args)


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
@pytest.mark.parametrize("gateway", ["10.0.0.1", "10.0.0.2", ""])
@pytest.mark.parametrize("found", ["10.0.0.5/24", "10.0.0.6/24", "fd00::5/64"])
def test_check_compares_gateways_alike(version: str, gateway: str, found: str) -> None:
    ip: dict[str, Any] = {"address": found, **({"gateway": gateway} if gateway else {})}
    if version == "0.4.0":
        ip["version"] = "6" if ":" in found else "4"
    previous = {"cniVersion": version, "ips": [ip]}
    both("CHECK", config(WRITTEN, version, prevResult=previous))


def test_check_needs_a_result() -> None:
    assert both("CHECK", config(WRITTEN)).code == 999


addresses = st.sampled_from(["10.0.0.5/24", "10.8.0.3/8", "fd00::5/64", "::ffff:10.0.0.7/120", "10.0.0.5", "x/8", ""])
gateways = st.sampled_from(["", "10.0.0.1", "10.8.0.1", "fd00::1", "x"])


@settings(max_examples=80)
@given(
    written=st.lists(st.fixed_dictionaries({"address": addresses}, optional={"gateway": gateways}), max_size=3),
    in_args=st.lists(addresses, max_size=2),
    gateways_in_args=st.lists(gateways, max_size=2),
    runtime=st.lists(addresses, max_size=2),
    version=st.sampled_from(VERSIONS),
)
def test_generated_requests_are_answered_alike(
    written: list[dict[str, str]], in_args: list[str], gateways_in_args: list[str], runtime: list[str], version: str
) -> None:
    if runtime and any(each.get("gateway") == "x" for each in written):
        return  # the executed plugin stumbles over a gateway that it would not use
    args = f"IP={','.join(in_args)};GATEWAY={','.join(gateways_in_args)}"
    both("ADD", config({"addresses": written}, version, runtimeConfig={"ips": runtime}), args)


@pytest.mark.parametrize(
    "ipam",
    [
        {"addresses": [{"address": "10.0.0.5/24", "version": "4"}]},
        {"Addresses": []},
        {"dns": {"nameserver": []}},
        {"routes": [{"dst": "0.0.0.0/0", "src": "10.0.0.5"}]},
        {"range": "10.0.0.0/8"},
    ],
)
def test_unknown_options_are_left_to_the_binary(ipam: dict[str, Any]) -> None:
    assert static.unsupported(config(ipam))
    assert not static.unsupported(config(WRITTEN, mtu=1400, args={"cni": {"mac": "x"}}))
