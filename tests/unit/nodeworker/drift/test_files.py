"""Differences between the files that the ledger expects and those of the node, as values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from events.fold import Attachment, AttachmentPhase, Sandbox, SandboxKey, SandboxPhase
from events.schema import ContainerId, DriftKind, IfName, NetworkName, NodeName, PlannedAttachment, Pod
from nodeworker.drift.files import ExpectedFile, expected_files, file_differences, other_holder

INFO = '{"type":"pci","version":"1.1.0"}'
FOLDER = "/data/net"


def box(
    *addresses: str,
    ipam: dict[str, Any] | None = None,
    container_id: str = "box",
    version: str = "1.0.0",
    phase: SandboxPhase = SandboxPhase.ATTACHED,
    device_info: str = "",
) -> Sandbox:
    section = {"type": "host-local", "dataDir": "/data", **(ipam or {})}
    result: dict[str, Any] = {
        "cniVersion": version,
        "interfaces": [{"name": "br0"}, {"name": "net1", "sandbox": "/run/netns/box"}],
        "ips": [{"interface": 1, "address": each, "version": "4"} for each in addresses],
    }
    plan = PlannedAttachment(
        network=NetworkName("ns/net"),
        ifname=IfName("net1"),
        cni_name="net",
        cni_version=version,
        plugins=(json.dumps({"type": "macvlan", "name": "net", "ipam": section}),),
        device_info="/info/net1" if device_info else "",
    )
    attachment = Attachment(
        plan=plan, phase=AttachmentPhase.ATTACHED, result=json.dumps(result), device_info=device_info
    )
    return Sandbox(
        key=SandboxKey(ContainerId(container_id), IfName("eth0")),
        node=NodeName("node-1"),
        pod=Pod(namespace="ns", name=container_id),
        phase=phase,
        attachments=(attachment,),
    )


def expected(sandbox: Sandbox, policy: str = "repair") -> tuple[ExpectedFile, ...]:
    return expected_files(sandbox, lambda _: policy)


KEPT = st.sampled_from([b"box\r\nnet1", b"box\r\nnet1\n", b"box"])
TORN = st.sampled_from([b"", b"\n", b"\xff\xfe", b"no owner at all", b"box\r\nno/interface"])
FOREIGN = st.sampled_from([b"other\r\nnet1", b"other", b"box\r\nnet2", b"box2\r\nnet1"])
FILES = st.one_of(
    st.tuples(st.just(None), KEPT),
    st.tuples(st.just(DriftKind.RESERVATION_MISSING), st.one_of(st.none(), TORN)),
    st.tuples(st.just(DriftKind.RESERVATION_FOREIGN), FOREIGN),
)


ADDRESSES = st.ip_addresses().map(lambda each: str(getattr(each, "ipv4_mapped", None) or each))
"""As host-local names its files: an IPv4-mapped address is the IPv4 address."""


@given(st.dictionaries(ADDRESSES, FILES, max_size=6), st.dictionaries(st.text(), KEPT, max_size=3))
def test_each_file_is_judged_alone(
    files: dict[str, tuple[DriftKind | None, bytes | None]], others: dict[str, bytes]
) -> None:
    sandbox = box(*(f"{address}/{128 if ':' in address else 32}" for address in files))
    contents = {f"{FOLDER}/{name}": content for name, (_, content) in files.items() if content is not None}
    drifts = file_differences(expected(sandbox), others | contents)
    assert {drift.expected: drift.kind for drift in drifts} == {
        address: kind for address, (kind, _) in files.items() if kind is not None
    }
    assert all((drift.network, drift.ifname) == ("ns/net", "net1") for drift in drifts)


def test_foreign_reservation_names_its_owner() -> None:
    (drift,) = file_differences(expected(box("10.0.0.2/24")), {f"{FOLDER}/10.0.0.2": b"a" * 64 + b"\r\neth0"})
    assert (drift.kind, drift.found) == (DriftKind.RESERVATION_FOREIGN, "aaaaaaaaaaaa eth0")


@pytest.mark.parametrize(
    ("ipam", "addresses"),
    [
        ({"type": "static"}, []),
        ({"dataDir": "relative"}, []),
        ({"ranges": [[{"subnet": "10.0.0.0/24"}]]}, ["10.0.0.2"]),
        ({"subnet": "10.1.0.0/24"}, ["10.1.0.2"]),
        ({"ranges": None}, ["10.0.0.2", "10.1.0.2"]),
        ({"subnet": "no subnet"}, ["10.0.0.2", "10.1.0.2"]),
    ],
)
def test_only_addresses_of_host_local_are_reserved(ipam: dict[str, Any], addresses: list[str]) -> None:
    found = expected(box("10.0.0.2/24", "10.1.0.2/24", ipam=ipam))
    assert [each.expected for each in found] == addresses


def test_default_folder_and_path_with_dots() -> None:
    assert expected(box("10.0.0.2/24", ipam={"dataDir": ""}))[0].path == "/var/lib/cni/networks/net/10.0.0.2"
    assert expected(box("10.0.0.2/24", ipam={"dataDir": "/x/../data/"}))[0].path == "/data/net/10.0.0.2"


def test_result_of_an_old_version_is_read() -> None:
    sandbox = box(version="0.2.0")
    (attachment,) = sandbox.attachments
    old = replace(attachment, result='{"ip4":{"ip":"10.0.0.2/24"},"ip6":{"ip":"fd00::2/64"}}')
    found = expected(replace(sandbox, attachments=(old,)))
    assert [each.expected for each in found] == ["10.0.0.2", "fd00::2"]


def test_network_with_policy_off_is_not_compared() -> None:
    assert expected(box("10.0.0.2/24", device_info=INFO), "off") == ()


@pytest.mark.parametrize(
    ("contents", "found"),
    [({}, [""]), ({"/info/net1": b"{}"}, ["other text"]), ({"/info/net1": INFO.encode()}, [])],
)
def test_device_information_is_compared(contents: dict[str, bytes], found: list[str]) -> None:
    drifts = file_differences(expected(box(device_info=INFO)), contents)
    assert [drift.found for drift in drifts] == found
    assert {drift.kind for drift in drifts} <= {DriftKind.DEVICE_INFO_CHANGED}
    assert {drift.expected for drift in drifts} <= {"/info/net1"}


@pytest.mark.parametrize(
    ("other", "holder"),
    [
        (box("10.0.0.2/24", container_id="other"), "ns/other"),
        (box("10.0.0.3/24", container_id="other"), ""),
        (box("10.0.0.2/24", container_id="other", ipam={"dataDir": "/elsewhere"}), ""),
        (box("10.0.0.3/24", container_id="other", phase=SandboxPhase.PLANNED), "ns/other"),
        (box("10.0.0.2/24", container_id="third"), ""),
    ],
)
def test_container_in_a_file_holds_the_address_by_the_ledger(other: Sandbox, holder: str) -> None:
    own = box("10.0.0.2/24")
    (file,) = expected(own)
    assert file.reservation is not None
    sandboxes = {own.key: own, other.key: other}
    assert other_holder(sandboxes, file.reservation, b"other\r\nnet1") == holder
    assert other_holder(sandboxes, file.reservation, b"box\r\nnet2") == ""
