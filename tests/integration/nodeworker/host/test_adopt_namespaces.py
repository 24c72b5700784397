"""The search for sandboxes' namespaces, with real namespaces."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from nodeworker.host.adopt.namespaces import NO_INODE, NamespaceFinder, without_false_claims
from nodeworker.host.adopt.plan import Adoption, FoundNamespace, judge
from nodeworker.host.adopt.read import SandboxFiles, read_state
from nodeworker.kernel.namespaces import why_gone
from tests.support.host.multus_pods import DEFAULT, MACVLAN, POD, result
from tests.support.host.multus_state import MultusNode

MakeNamespace = Callable[..., str]

MAC, ADDRESS = "02:00:00:00:00:07", "10.244.1.7/24"


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


@pytest.fixture
def make_namespace() -> Iterator[MakeNamespace]:
    """Create namespaces with an interface eth0 that has the pod's address and MAC."""
    made: list[str] = []

    def make(address: str = ADDRESS, mac: str = MAC) -> str:
        name = f"plumbline-{secrets.token_hex(4)}"
        ip("netns", "add", name)
        made.append(name)
        ip("-n", name, "link", "add", "eth0", "address", mac, "type", "veth", "peer", "name", "peer0")
        ip("-n", name, "addr", "add", address, "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "peer0", "up")
        return f"/run/netns/{name}"

    yield make
    for name in made:
        ip("netns", "del", name)


def files(multus: MultusNode, netns: str, *, stated: bool = True) -> SandboxFiles:
    """Return the files of a pod with one interface in *netns*, whose path is in them only if *stated*."""
    sandbox = {"sandbox": netns} if stated else {}
    outcome = {**result("eth0", ADDRESS, MAC), "interfaces": [{"name": "eth0", "mac": MAC, **sandbox}]}
    pod = replace(POD, networks=(replace(DEFAULT, result=outcome),), netns=netns if stated else "")
    multus.write(pod)
    (found,) = read_state(multus.cni_dir, [multus.cache_dir], multus.host_local_dir).sandboxes
    return found


def test_namespace_is_found_by_the_recorded_path(multus: MultusNode, make_namespace: MakeNamespace) -> None:
    netns = make_namespace()
    place = FoundNamespace(netns=netns, links=frozenset({"lo", "eth0", "peer0"}), inode=os.stat(netns).st_ino)
    assert NamespaceFinder().find(files(multus, netns)) == place


def test_namespace_is_found_by_results_of_old_files(multus: MultusNode, make_namespace: MakeNamespace) -> None:
    netns = make_namespace()
    files(multus, netns)
    multus.write_entry(replace(POD, networks=(replace(DEFAULT, result=result("eth0", ADDRESS, MAC, netns)),)), 0)
    multus.request(POD).unlink()
    (found,) = read_state(multus.cni_dir, [multus.cache_dir], multus.host_local_dir).sandboxes
    assert NamespaceFinder().find(found).netns == netns
    assert NamespaceFinder().find(found).links


def test_removed_namespace_keeps_its_path(multus: MultusNode) -> None:
    assert NamespaceFinder().find(files(multus, "/run/netns/plumbline-gone")) == FoundNamespace(
        netns="/run/netns/plumbline-gone"
    )


def test_plain_file_is_not_a_namespace(multus: MultusNode, tmp_path: Path) -> None:
    (tmp_path / "netns").touch()
    assert NamespaceFinder().find(files(multus, str(tmp_path / "netns"))).links is None


def test_reused_process_id_is_not_accepted(multus: MultusNode, make_namespace: MakeNamespace) -> None:
    other = Path(make_namespace("10.244.9.9/24", "02:00:00:00:00:99")).name
    with subprocess.Popen(
        ["ip", "netns", "exec", other, "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            path = f"/proc/{process.pid}/ns/net"
            place = NamespaceFinder().find(files(multus, path))
            assert place == FoundNamespace(netns=path, inode=NO_INODE)
            assert "another one" in why_gone(path, place.inode), "nor is it opened later"
            mine = replace(DEFAULT, result=result("eth0", "10.244.9.9/24", "02:00:00:00:00:99", path))
            multus.write(replace(POD, networks=(mine,), netns=path))
            (found,) = read_state(multus.cni_dir, [multus.cache_dir], multus.host_local_dir).sandboxes
            assert NamespaceFinder().find(found).links
        finally:
            process.kill()


def test_node_namespace_is_never_a_sandbox(multus: MultusNode) -> None:
    assert NamespaceFinder().find(files(multus, "/proc/self/ns/net")).links is None


def test_namespace_without_path_is_found_by_addresses(multus: MultusNode, make_namespace: MakeNamespace) -> None:
    make_namespace("10.244.1.8/24", "02:00:00:00:00:08")
    netns = make_namespace()
    found = files(multus, "", stated=False)
    assert NamespaceFinder().find(found).netns == netns
    make_namespace()  # a second one with the same addresses
    assert NamespaceFinder().find(found) == FoundNamespace()


def claiming(multus: MultusNode, netns: str, gateway: str) -> Adoption:
    """Return the adoption of a pod whose net1 claims the default route."""
    first = replace(DEFAULT, result=result("net0", "10.3.0.9/24", "02:00:00:00:00:33", netns))
    second = replace(
        MACVLAN, ifname="eth0", mac="", ips=(), default_route=(gateway,), result=result("eth0", ADDRESS, MAC, netns)
    )
    multus.write(replace(POD, networks=(first, second), ifname="net0", netns=netns))
    (found,) = read_state(multus.cni_dir, [multus.cache_dir], multus.host_local_dir).sandboxes
    place = NamespaceFinder().find(found)
    verdict = judge(found, place)
    assert isinstance(verdict, Adoption), verdict
    assert verdict.data.plan.attachments[1].default_route == (gateway,)
    return without_false_claims(verdict, place)


def test_existing_default_route_stays_claimed(multus: MultusNode, make_namespace: MakeNamespace) -> None:
    netns = make_namespace()
    ip("-n", os.path.basename(netns), "route", "add", "default", "via", "10.244.1.1")
    adoption = claiming(multus, netns, "10.244.1.1")
    assert adoption.data.plan.attachments[1].default_route == ("10.244.1.1",)
    assert not adoption.notes


def test_unmoved_default_route_is_not_claimed(multus: MultusNode, make_namespace: MakeNamespace) -> None:
    adoption = claiming(multus, make_namespace(), "10.244.1.1")
    assert [each.default_route for each in adoption.data.plan.attachments] == [None, None]
    assert "stay as they are" in adoption.notes[0]
    assert json.loads(adoption.data.plan.attachments[1].plugins[0])["master"] == "eth1"
