"""The grammar of addresses is that of Go, which the plugins are written in; the values are those of Go's own tests."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeworker.plugins.spec.addresses import (
    address,
    check_fits,
    family,
    guid,
    hardware_address,
    interface_address,
    network,
    with_prefix,
)

INFINIBAND = "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:31:79:f1"

MACS = {
    "00:00:5e:00:53:01": "00:00:5e:00:53:01",
    "00-00-5e-00-53-01": "00:00:5e:00:53:01",
    "0000.5e00.5301": "00:00:5e:00:53:01",
    "02:00:5e:10:00:00:00:01": "02:00:5e:10:00:00:00:01",
    "02-00-5e-10-00-00-00-01": "02:00:5e:10:00:00:00:01",
    "0200.5e10.0000.0001": "02:00:5e:10:00:00:00:01",
    "00:00:00:00:fe:80:00:00:00:00:00:00:02:00:5e:10:00:00:00:01": (
        "00:00:00:00:fe:80:00:00:00:00:00:00:02:00:5e:10:00:00:00:01"
    ),
    "00-00-00-00-fe-80-00-00-00-00-00-00-02-00-5e-10-00-00-00-01": (
        "00:00:00:00:fe:80:00:00:00:00:00:00:02:00:5e:10:00:00:00:01"
    ),
    "0000.0000.fe80.0000.0000.0000.0200.5e10.0000.0001": (
        "00:00:00:00:fe:80:00:00:00:00:00:00:02:00:5e:10:00:00:00:01"
    ),
    "ab:cd:ef:AB:CD:EF": "ab:cd:ef:ab:cd:ef",
    "ab:cd:ef:AB:CD:EF:ab:cd": "ab:cd:ef:ab:cd:ef:ab:cd",
    "ab:cd:ef:AB:CD:EF:ab:cd:ef:AB:CD:EF:ab:cd:ef:AB:CD:EF:ab:cd": (
        "ab:cd:ef:ab:cd:ef:ab:cd:ef:ab:cd:ef:ab:cd:ef:ab:cd:ef:ab:cd"
    ),
    "02AA.bb00.1122": "02:aa:bb:00:11:22",
}
NO_MACS = [
    "01.02.03.04.05.06",
    "01:02:03:04:05:06:",
    "x1:02:03:04:05:06",
    "01002:03:04:05:06",
    "01:02003:04:05:06",
    "01:02:03004:05:06",
    "01:02:03:04005:06",
    "01:02:03:04:05006",
    "01-02:03:04:05:06",
    "01:02-03-04-05-06",
    "0123:4567:89AF",
    "0123-4567-89AF",
    "foo-bar-baz",
    "VCKpL053",
    "",
    "01:02:03:04:05",
    "01:02:03:04:05:06:07",
    "01:02:03:04:05:06\n",
    "\u06601:02:03:04:05:06",
]

IPS = {
    "127.0.1.2": "127.0.1.2",
    "127.0.0.1": "127.0.0.1",
    "::ffff:127.1.2.3": "127.1.2.3",
    "::ffff:7f01:0203": "127.1.2.3",
    "0:0:0:0:0000:ffff:127.1.2.3": "127.1.2.3",
    "0:0:0:0::ffff:127.1.2.3": "127.1.2.3",
    "::ffff:192.168.140.255": "192.168.140.255",
    "2001:4860:0:2001::68": "2001:4860:0:2001::68",
    "2001:4860:0000:2001:0000:0000:0000:0068": "2001:4860:0:2001::68",
    "0.0.0.0": "0.0.0.0",
    "192.168.140.255": "192.168.140.255",
    "::": "::",
    "::1": "::1",
    "fd7a:115c:a1e0:ab12:4843:cd96:626b:430b": "fd7a:115c:a1e0:ab12:4843:cd96:626b:430b",
    "fd7a:115c::626b:430b": "fd7a:115c::626b:430b",
    "fd7a:115c:a1e0:ab12:4843:cd96::": "fd7a:115c:a1e0:ab12:4843:cd96::",
    "fd7a:115c:a1e0:ab12:4843:cd96:626b::": "fd7a:115c:a1e0:ab12:4843:cd96:626b:0",
    "fd7a:115c:a1e0::4843:cd96:626b:430b": "fd7a:115c:a1e0:0:4843:cd96:626b:430b",
    "1:2::ffff:192.168.140.255": "1:2::ffff:c0a8:8cff",
    "FD9E:1A04:F01D::1": "fd9e:1a04:f01d::1",
}
NO_IPS = [
    "-0.0.0.0",
    "0.-1.0.0",
    "0.0.-2.0",
    "0.0.0.-3",
    "127.0.0.256",
    "abc",
    "123:",
    "fe80::1%lo0",
    "fe80::1%911",
    "",
    "a1:a2:a3:a4::b1:b2:b3:b4",
    "127.001.002.003",
    "::ffff:127.001.002.003",
    "123.000.000.000",
    "1.2..4",
    "0123.0.0.1",
    "010.000.015.001",
    "000001.00000002.00000003.000000004",
    "::ffff:1.2.03.4",
    "1234",
    "1.2.3.4%eth0",
    ".1.2.3",
    "1.2.3.",
    "1..2.3",
    "1.2.3.4.5",
    "0300.0250.0214.0377",
    "0xc0.0xa8.0x8c.0xff",
    "192.168.12345",
    "127.0.1",
    "192.1234567",
    "127.1",
    "192.168.300.1",
    "192.168.0.1.5.6",
    "1:2:3:4:5:6:7",
    "1:2:3:4:5:6:7:8:9",
    "1:2:3:4::5:6:7:8",
    "fe801::1",
    "fe80:tail:scal:e::",
    "fe80::1%",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:192.168.140.255",
    "ffff::ffff:ffff:ffff:ffff:ffff:ffff:192.168.140.255",
    "::ffff:192.168.140.bad",
    "fe80::1::1",
    "fe80:1?:1",
    "fe80:",
    "10.1.0.1 ",
    "10.1.0.1/24",
]

CIDRS = {
    "135.104.0.0/32": ("135.104.0.0/32", "135.104.0.0/32"),
    "0.0.0.0/24": ("0.0.0.0/24", "0.0.0.0/24"),
    "135.104.0.0/24": ("135.104.0.0/24", "135.104.0.0/24"),
    "135.104.0.1/32": ("135.104.0.1/32", "135.104.0.1/32"),
    "135.104.0.1/24": ("135.104.0.1/24", "135.104.0.0/24"),
    "::1/128": ("::1/128", "::1/128"),
    "abcd:2345::/127": ("abcd:2345::/127", "abcd:2345::/127"),
    "abcd:2345::/65": ("abcd:2345::/65", "abcd:2345::/65"),
    "abcd:2345::/33": ("abcd:2345::/33", "abcd:2345::/33"),
    "abcd:2344::/31": ("abcd:2344::/31", "abcd:2344::/31"),
    "abcd:2300::/24": ("abcd:2300::/24", "abcd:2300::/24"),
    "abcd:2345::/24": ("abcd:2345::/24", "abcd:2300::/24"),
    "2001:DB8::/48": ("2001:db8::/48", "2001:db8::/48"),
    "2001:DB8::1/48": ("2001:db8::1/48", "2001:db8::/48"),
    "::ffff:10.0.0.1/120": ("10.0.0.1/24", "10.0.0.0/24"),
    "10.1.0.1/0000": ("10.1.0.1/0", "0.0.0.0/0"),
    "10.1.0.1/0000000024": ("10.1.0.1/24", "10.1.0.0/24"),
}
NO_CIDRS = [
    "192.168.1.1/255.255.255.0",
    "192.168.1.1/35",
    "2001:db8::1/-1",
    "2001:db8::1/-0",
    "-0.0.0.0/32",
    "0.-1.0.0/32",
    "0.0.-2.0/32",
    "0.0.0.-3/32",
    "0.0.0.0/-0",
    "127.000.000.001/32",
    "",
    "10.1.0.1",
    "10.1.0.1/",
    "10.1.0.1/+8",
    "10.1.0.1/٨",
    "10.1.0.1/" + "9" * 5000,
    "::ffff:10.1.0.1/95",
    "fe80::1%eth0/64",
]


@pytest.mark.parametrize(("text", "canonical"), MACS.items())
def test_a_hardware_address_is_read_in_every_spelling(text: str, canonical: str) -> None:
    assert hardware_address(text) == canonical
    assert hardware_address(canonical) == canonical


@pytest.mark.parametrize("text", NO_MACS)
def test_what_is_no_hardware_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a hardware address"):
        hardware_address(text)


@pytest.mark.parametrize(("text", "canonical"), IPS.items())
def test_an_ip_address_is_read_as_go_reads_it(text: str, canonical: str) -> None:
    assert str(address(text)) == canonical


@pytest.mark.parametrize("text", NO_IPS)
def test_what_is_no_ip_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address"):
        address(text)


@pytest.mark.parametrize(("text", "canonical"), CIDRS.items())
def test_a_prefix_is_read_as_go_reads_it(text: str, canonical: tuple[str, str]) -> None:
    assert (str(with_prefix(text)), str(network(text))) == canonical
    assert family(text) == with_prefix(text).version


@pytest.mark.parametrize("text", NO_CIDRS)
def test_what_has_no_prefix_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="prefix length") as caught:
        with_prefix(text)
    assert len(str(caught.value)) < 200


@given(st.binary(min_size=6, max_size=6) | st.binary(min_size=8, max_size=8) | st.binary(min_size=20, max_size=20))
def test_every_spelling_of_an_address_is_the_same_address(raw: bytes) -> None:
    dotted = ".".join(raw.hex()[at : at + 4] for at in range(0, 2 * len(raw), 4))
    spelled = {raw.hex(":"), raw.hex(":").upper(), raw.hex("-"), raw.hex("-").upper(), dotted, dotted.upper()}
    assert {hardware_address(each) for each in spelled} == {raw.hex(":")}


@given(st.ip_addresses(), st.integers(0, 32))
def test_a_prefix_that_python_writes_is_read(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, bits: int) -> None:
    if isinstance(ip, ipaddress.IPv4Address) or not ip.ipv4_mapped:
        assert with_prefix(f"{ip}/{bits}") == ipaddress.ip_interface(f"{ip}/{bits}")


@pytest.mark.parametrize(
    "text", ["02:00:5e:10:00:01", "FE-00-00-00-00-00", INFINIBAND, INFINIBAND.replace("80", "01", 1)]
)
def test_an_interface_can_have_a_unicast_address_of_ethernet_or_infiniband(text: str) -> None:
    assert interface_address(text) == hardware_address(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("f1:fd:59:0b:bd:2b", '"f1:fd:59:0b:bd:2b" is a multicast address'),
        ("ff:ff:ff:ff:ff:ff", "multicast"),
        ("0100.5e00.0001", "multicast"),
        ("00:00:00:00:00:00", "all zero"),
        (":".join(["00"] * 20), "all zero"),
        ("02:00:5e:10:00:00:00:01", "has 8 bytes, and an interface has 6"),
        ("02:00:5e:10:00", "is not a hardware address"),
    ],
)
def test_an_address_that_no_interface_can_have_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        interface_address(text)


def test_an_address_of_another_length_than_the_links_is_refused_with_both() -> None:
    check_fits("02:00:5e:10:00:01", 6, "net1")
    check_fits(INFINIBAND, 20, "net1")
    with pytest.raises(
        ValueError, match=r"has 20 bytes, as on InfiniBand, and an address of net1 has 6, as on Ethernet"
    ):
        check_fits(INFINIBAND, 6, "net1")
    with pytest.raises(ValueError, match=r"has 6 bytes, as on Ethernet, and an address of net1 has 16: "):
        check_fits("02:00:5e:10:00:01", 16, "net1")


def test_a_guid_has_eight_bytes() -> None:
    assert guid("C2-11-22-33-44-55-66-77") == guid("c211.2233.4455.6677") == "c2:11:22:33:44:55:66:77"
    for text in ("c2:11:22:33:44:55", INFINIBAND, "c2", "0xc211223344556677"):
        with pytest.raises(ValueError, match="is not a GUID, which has 8 bytes"):
            guid(text)
