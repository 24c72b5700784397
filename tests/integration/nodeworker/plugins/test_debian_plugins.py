"""The operations against the plugins that Debian ships, in real namespaces."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nodeworker.plugins import chain
from nodeworker.plugins.chain import PluginFailedError, Target
from nodeworker.plugins.exec import PluginExecutor
from nodeworker.plugins.spec import results
from tests.support.plugins.scripts import addresses, ip, links, planned

PLUGINS = "/usr/lib/cni"
SECONDS = 30.0

pytestmark = pytest.mark.skipif(
    not os.path.isdir(PLUGINS), reason=f"{PLUGINS} is missing: install Debian's containernetworking-plugins"
)

VERSIONS = ["0.3.1", "0.4.0", "1.0.0"]


@pytest.fixture
def target(netns: str) -> Target:
    return Target(container_id=f"cid-{netns}", netns=f"/run/netns/{netns}", plugin_folders=(PLUGINS,))


@pytest.fixture
def master(node: None) -> str:
    """A link of the node that can carry others."""
    ip("link", "add", "uplink", "type", "veth", "peer", "name", "switch")
    ip("link", "set", "uplink", "up")
    return "uplink"


def nat_rules() -> str:
    return subprocess.run(["iptables", "-t", "nat", "-S"], check=True, capture_output=True, text=True).stdout


def host_local(data: Path) -> dict[str, Any]:
    return {"type": "host-local", "dataDir": str(data), "ranges": [[{"subnet": "10.77.0.0/24"}]]}


def reserved(data: Path) -> list[str]:
    return sorted(path.name for path in (data / "net").glob("10.*"))


@pytest.mark.parametrize("version", VERSIONS)
async def test_bridge_with_host_local(
    executor: PluginExecutor, target: Target, netns: str, tmp_path: Path, version: str
) -> None:
    bridge = {"type": "bridge", "bridge": "br0", "ipam": host_local(tmp_path)}
    attachment = planned({"cniVersion": version, "name": "net", "plugins": [bridge]})
    result, runs = await chain.add(executor, attachment, target, SECONDS)
    assert [run.type for run in runs] == ["bridge"]
    decoded = results.decode(result, "")
    assert decoded.cni_version == version
    assert [address.address for address in decoded.ips] == ["10.77.0.2/24"] == addresses(netns, "net1")
    assert [each.name for each in decoded.interfaces if each.sandbox] == ["net1"]
    await chain.check(executor, attachment, target, result, SECONDS)
    for _ in range(2):  # a repeated DEL is a success
        await chain.delete(executor, attachment, target, result, SECONDS)
    assert "net1" not in links(netns)
    assert reserved(tmp_path) == []


@pytest.mark.parametrize("version", VERSIONS)
async def test_macvlan(executor: PluginExecutor, target: Target, netns: str, master: str, version: str) -> None:
    attachment = planned({"cniVersion": version, "name": "net", "type": "macvlan", "master": master, "ipam": {}})
    ip("link", "set", master, "mtu", "1412")
    result, runs = await chain.add(executor, attachment, target, SECONDS)
    assert [run.mtu for run in runs] == [1412], "which its result does not contain"
    assert results.decode(result, "").interfaces[0].sandbox == target.netns
    assert "net1" in links(netns)
    await chain.delete(executor, attachment, target, result, SECONDS)
    assert "net1" not in links(netns)


@pytest.mark.parametrize("version", VERSIONS)
async def test_chain_of_bridge_tuning_and_portmap(
    executor: PluginExecutor, target: Target, netns: str, tmp_path: Path, version: str
) -> None:
    ports = [{"hostPort": 18080, "containerPort": 80, "protocol": "tcp"}]
    attachment = planned(
        {
            "cniVersion": version,
            "name": "net",
            "plugins": [
                {"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": host_local(tmp_path)},
                {"type": "tuning", "mtu": 1400, "mac": "02:00:00:00:77:01"},
                {"type": "portmap", "capabilities": {"portMappings": True}, "runtimeConfig": {"portMappings": ports}},
            ],
        }
    )
    result, runs = await chain.add(executor, attachment, target, SECONDS)
    assert [run.type for run in runs] == ["bridge", "tuning", "portmap"]
    (link,) = json.loads(ip("-n", netns, "-json", "link", "show", "net1"))
    assert (link["mtu"], link["address"]) == (1400, "02:00:00:00:77:01")
    assert "--to-destination 10.77.0.2:80" in nat_rules()
    await chain.delete(executor, attachment, target, result, SECONDS)
    assert "net1" not in links(netns)
    assert reserved(tmp_path) == []
    assert "10.77.0.2:80" not in nat_rules()


@pytest.mark.parametrize("version", VERSIONS)
async def test_loopback(executor: PluginExecutor, target: Target, netns: str, version: str) -> None:
    attachment = planned({"cniVersion": version, "name": "lo", "type": "loopback"}, ifname="lo")
    result, _ = await chain.add(executor, attachment, target, SECONDS)
    assert "UP" in json.loads(ip("-n", netns, "-json", "link", "show", "lo"))[0]["flags"]
    assert json.loads(result)["cniVersion"] == version
    await chain.delete(executor, attachment, target, result, SECONDS)


async def test_delete_frees_the_address_when_the_namespace_is_gone(
    executor: PluginExecutor, target: Target, netns: str, tmp_path: Path
) -> None:
    bridge = {"type": "bridge", "bridge": "br0", "ipam": host_local(tmp_path)}
    attachment = planned({"cniVersion": "1.0.0", "name": "net", "plugins": [bridge]})
    result, _ = await chain.add(executor, attachment, target, SECONDS)
    assert reserved(tmp_path) == ["10.77.0.2"]
    ip("netns", "del", netns)
    gone = Target(container_id=target.container_id, netns="", plugin_folders=target.plugin_folders)
    await chain.delete(executor, attachment, gone, result, SECONDS)
    assert reserved(tmp_path) == []


async def test_check_sees_a_lost_interface(
    executor: PluginExecutor, target: Target, netns: str, master: str, tmp_path: Path
) -> None:
    macvlan = {"type": "macvlan", "master": master, "ipam": host_local(tmp_path)}
    attachment = planned({"cniVersion": "1.0.0", "name": "net", "plugins": [macvlan]})
    result, _ = await chain.add(executor, attachment, target, SECONDS)
    ip("-n", netns, "link", "del", "net1")
    with pytest.raises(PluginFailedError, match="macvlan failed to check net1 of default/net: "):
        await chain.check(executor, attachment, target, result, SECONDS)
    await chain.delete(executor, attachment, target, result, SECONDS)


async def test_plugins_own_message_and_code_are_passed_on(executor: PluginExecutor, target: Target) -> None:
    attachment = planned({"cniVersion": "1.0.0", "name": "net", "type": "macvlan", "master": "absent0", "ipam": {}})
    with pytest.raises(PluginFailedError, match="macvlan failed to add net1 of default/net: Link not found") as raised:
        await chain.add(executor, attachment, target, SECONDS)
    assert raised.value.failure.code == 999


async def test_an_unsupported_version_is_the_plugins_error(executor: PluginExecutor, target: Target) -> None:
    attachment = planned({"cniVersion": "1.1.0", "name": "net", "type": "macvlan", "ipam": {}})
    with pytest.raises(PluginFailedError, match="incompatible CNI versions") as raised:
        await chain.add(executor, attachment, target, SECONDS)
    assert raised.value.failure.code == 1
