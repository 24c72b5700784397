from __future__ import annotations

import contextlib
import ipaddress
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeworker.plugins.spec.results import (
    DNS,
    IP,
    Interface,
    Result,
    ResultError,
    Route,
    accepted,
    convert,
    decode,
    encode,
    stated,
)
from nodeworker.plugins.spec.versions import SUPPORTED

FULL = Result(
    cni_version="1.1.0",
    interfaces=(
        Interface(name="br0", mac="02:00:00:00:00:01"),
        Interface(
            name="net1", mac="02:00:00:00:00:02", mtu=1400, sandbox="/run/netns/a", socket_path="/s", pci_id="0:1"
        ),
    ),
    ips=(
        IP(interface=1, address="10.1.0.5/16", gateway="10.1.0.1"),
        IP(interface=1, address="10.2.0.5/16"),
        IP(interface=1, address="fd00::5/64", gateway="fd00::1"),
    ),
    routes=(Route(dst="0.0.0.0/0", gw="10.1.0.1", mtu=1300, table=0), Route(dst="fd01::/64", priority=5, scope=0)),
    dns=DNS(nameservers=("10.1.0.1",), domain="example.org", search=("a",), options=("ndots:5",)),
)

V1_1: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "br0", "mac": "02:00:00:00:00:01"},
        {
            "name": "net1",
            "mac": "02:00:00:00:00:02",
            "mtu": 1400,
            "sandbox": "/run/netns/a",
            "socketPath": "/s",
            "pciID": "0:1",
        },
    ],
    "ips": [
        {"interface": 1, "address": "10.1.0.5/16", "gateway": "10.1.0.1"},
        {"interface": 1, "address": "10.2.0.5/16"},
        {"interface": 1, "address": "fd00::5/64", "gateway": "fd00::1"},
    ],
    "routes": [
        {"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1300, "table": 0},
        {"dst": "fd01::/64", "priority": 5, "scope": 0},
    ],
    "dns": {"nameservers": ["10.1.0.1"], "domain": "example.org", "search": ["a"], "options": ["ndots:5"]},
}
V0_4: dict[str, Any] = {
    "cniVersion": "0.4.0",
    "interfaces": [
        {"name": "br0", "mac": "02:00:00:00:00:01"},
        {"name": "net1", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"},
    ],
    "ips": [
        {"version": "4", "interface": 1, "address": "10.1.0.5/16", "gateway": "10.1.0.1"},
        {"version": "4", "interface": 1, "address": "10.2.0.5/16"},
        {"version": "6", "interface": 1, "address": "fd00::5/64", "gateway": "fd00::1"},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "fd01::/64"}],
    "dns": V1_1["dns"],
}
V0_2: dict[str, Any] = {
    "cniVersion": "0.2.0",
    "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
    "ip6": {"ip": "fd00::5/64", "gateway": "fd00::1", "routes": [{"dst": "fd01::/64"}]},
    "dns": V1_1["dns"],
}


@pytest.mark.parametrize(
    ("version", "shape"),
    [
        ("1.1.0", V1_1),
        ("1.0.0", V1_1),
        ("0.4.0", V0_4),
        ("0.3.1", V0_4),
        ("0.3.0", V0_4),
        ("0.2.0", V0_2),
        ("0.1.0", V0_2),
    ],
)
def test_each_version_has_its_shape(version: str, shape: dict[str, Any]) -> None:
    assert json.loads(encode(FULL, version)) == {**shape, "cniVersion": version}


def test_newest_shape_is_read_whole() -> None:
    assert decode(json.dumps(V1_1), "0.3.1") == FULL


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_result_without_address_has_no_old_form(version: str) -> None:
    with pytest.raises(ResultError, match="without an address"):
        encode(Result(cni_version="1.0.0", interfaces=(Interface(name="net1"),)), version)


@pytest.mark.parametrize("version", SUPPORTED)
def test_empty_result_is_a_result(version: str) -> None:
    assert decode("{}", version) == Result(cni_version=version)


def test_missing_version_is_the_fallback() -> None:
    assert decode('{"ip4":{"ip":"10.0.0.1/8"}}', "0.2.0").ips == (IP(address="10.0.0.1/8"),)
    assert stated(' {"ips":[]} ', "0.3.1") == '{"ips":[],"cniVersion":"0.3.1"}'
    assert stated('{"cniVersion":null}', "0.3.1") == '{"cniVersion":"0.3.1"}'


def test_stated_version_stays() -> None:
    text = '{ "cniVersion": "1.0.0" }'
    assert stated(text, "0.3.1") == text


def test_a_printed_result_is_recorded_and_converted() -> None:
    text = '{"ips":[{"version":"4","address":"10.0.0.1/8"}]}'
    in_its_own = '{"ips":[{"version":"4","address":"10.0.0.1/8"}],"cniVersion":"0.3.1"}'
    assert accepted(text, "0.3.1") == (in_its_own, in_its_own)
    printed, translated = accepted(in_its_own, "1.0.0")
    assert printed == in_its_own
    assert json.loads(translated) == {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/8"}]}


def test_a_result_without_a_version_gets_one_and_keeps_its_bytes() -> None:
    printed, previous = accepted('{"theirs": 1.4e3, "dns": {}, "x": {"y": 1.0, "z": null}}', "1.0.0")
    assert printed == previous == '{"theirs":1.4e3,"dns":{},"x":{"y": 1.0, "z": null},"cniVersion":"1.0.0"}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "not a JSON object"),
        ('{"cniVersion":"9"}', "'9', which is not supported"),
        (
            '{"ips":[{"address":"10.0.0.1"}]}',
            r'ips\[0\] of the result: "10.0.0.1" is not an IP address with a prefix length',
        ),
        ('{"ips":[{"address":"10.0.0.1/8"},{"address":"10.0.0.1/33"}]}', r'ips\[1\] .* of "10.0.0.1/33" does not fit'),
        ('{"ips":[{"address":"10.0.0/8"}]}', 'ips\\[0\\] of the result: "10.0.0/8" is not an IP address'),
        ('{"ips":[{"address":"10.0.0.1/255.0.0.0"}]}', "not an IP address with a prefix length"),
        ('{"routes":[{"dst":"::/0"},{"dst":"fe80::%1/64"}]}', r'routes\[1\] of the result: "fe80::%1/64" is not an IP'),
    ],
)
def test_a_printed_text_must_be_a_result(text: str, words: str) -> None:
    with pytest.raises(ResultError, match=words):
        accepted(text, "1.0.0")


def test_nulls_mean_nothing() -> None:
    text = (
        '{"cniVersion":"1.0.0","interfaces":null,"ips":[{"address":"10.0.0.1/8","gateway":null}],"dns":{"search":null}}'
    )
    assert decode(text, "").ips == (IP(address="10.0.0.1/8"),)


def test_same_version_is_passed_on_verbatim() -> None:
    text = '{ "cniVersion" : "1.0.0", "theirs": [1], "ips": [] }'
    assert convert(text, "0.3.1", "1.0.0") == text
    assert convert('{ "ips": [] }', "1.0.0", "1.0.0") == '{ "ips": [] }'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        ("OK", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ('{"cniVersion":"9.0.0"}', "'9.0.0'"),
        ('{"cniVersion":["1.0.0"]}', "not supported"),
        ('{"ips":{}}', "ips"),
        ('{"ips":[{}]}', "address"),
        ('{"ips":[{"address":"10.0.0.1"}]}', "prefix length"),
        ('{"ips":[{"address":"10.0.0/8"}]}', '"10.0.0/8"'),
        ('{"routes":[{"dst":"default"}]}', '"default"'),
        ('{"interfaces":[{"name":7}]}', "interfaces"),
    ],
)
def test_a_malformed_result_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ResultError, match=complaint):
        decode(text, "1.0.0")


def test_unsupported_target_is_refused() -> None:
    with pytest.raises(ResultError, match=r"2\.0\.0"):
        encode(FULL, "2.0.0")


# --- properties ------------------------------------------------------------------------------------------------------

_words = st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=8)
_numbers = st.integers(0, 2**31 - 1)
_networks = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)),
    st.tuples(st.ip_addresses(v=6).filter(lambda ip: not str(ip).startswith("::ffff:")), st.integers(0, 128)),
).map(lambda pair: f"{pair[0]}/{pair[1]}")
_hosts = st.just("") | st.ip_addresses().map(str)
_results = st.builds(
    Result,
    cni_version=st.just("1.1.0"),
    interfaces=st.lists(
        st.builds(Interface, name=_words, mac=_words, mtu=_numbers, sandbox=_words, socket_path=_words, pci_id=_words),
        max_size=3,
    ).map(tuple),
    ips=st.lists(
        st.builds(IP, interface=st.none() | st.integers(0, 3), address=_networks, gateway=_hosts), max_size=3
    ).map(tuple),
    routes=st.lists(
        st.builds(
            Route,
            dst=_networks,
            gw=_hosts,
            mtu=_numbers,
            advmss=_numbers,
            priority=_numbers,
            table=st.none() | _numbers,
            scope=st.none() | st.integers(0, 255),
        ),
        max_size=3,
    ).map(tuple),
    dns=st.builds(DNS, nameservers=st.lists(_words, max_size=2).map(tuple), domain=_words),
)


def expressible(result: Result, version: str) -> Result:
    """What *version* can express of *result*, independent of the code under test."""
    kept = msgspec.structs.replace(result, cni_version=version)
    if version in {"1.0.0", "1.1.0"}:
        return kept
    routes = tuple(Route(dst=route.dst, gw=route.gw) for route in result.routes)
    if version in {"0.3.0", "0.3.1", "0.4.0"}:
        interfaces = tuple(
            msgspec.structs.replace(each, mtu=0, socket_path="", pci_id="") for each in result.interfaces
        )
        return msgspec.structs.replace(kept, interfaces=interfaces, routes=routes)

    def of(family: int, values: list[Any], text: str) -> list[Any]:
        return [each for each in values if ipaddress.ip_interface(getattr(each, text)).version == family]

    ips: list[IP] = []
    family_routes: list[Route] = []
    for family in (4, 6):
        if found := of(family, list(result.ips), "address"):
            ips.append(IP(address=found[0].address, gateway=found[0].gateway))
            family_routes += of(family, list(routes), "dst")
    return msgspec.structs.replace(kept, interfaces=(), ips=tuple(ips), routes=tuple(family_routes))


@given(_results, st.sampled_from(SUPPORTED))
def test_encoding_keeps_what_the_version_can_express(result: Result, version: str) -> None:
    try:
        text = encode(result, version)
    except ResultError:
        assert version in {"0.1.0", "0.2.0"}
        assert not result.ips
        return
    assert decode(text, "") == expressible(result, version)


@given(_results, st.sampled_from(SUPPORTED), st.sampled_from(SUPPORTED))
def test_conversion_keeps_what_both_versions_can_express(result: Result, source: str, target: str) -> None:
    try:
        text = encode(result, source)
        converted = convert(text, "", target)
    except ResultError:
        assert not result.ips
        return
    assert decode(converted, "") == expressible(expressible(result, source), target)
    if source == target:
        assert converted == text


@given(
    st.text()
    | st.dictionaries(st.sampled_from(["ips", "routes", "cniVersion", "dns", "ip4"]), st.text()).map(json.dumps)
)
def test_any_text_is_decoded_or_refused(text: str) -> None:
    with contextlib.suppress(ResultError):
        decode(text, "0.3.1")
