"""Chains of executed and native plugins: neither the chain nor a later verb shows a difference."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from events.schema import ErrorClass, IfName, NetworkName, Phase, PlannedAttachment, PluginRun
from nodeworker.plugins import chain
from nodeworker.plugins.chain import PluginFailedError, Target
from nodeworker.plugins.exec import PluginExecutor
from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.native.registry import AUTO
from nodeworker.plugins.runners import PluginRunners
from nodeworker.plugins.spec import conflist
from tests.support.plugins.kernel_view import REFERENCE, container, node
from tests.support.plugins.native_harness import names, shown

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(
        not (REFERENCE / "portmap").exists(), reason="Debian's containernetworking-plugins are not installed"
    ),
    pytest.mark.skipif(shutil.which("iptables") is None, reason="iptables is not installed"),
]

MAC = "02:00:5e:10:00:07"


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        yield path


@pytest.fixture
async def runners(netns: str) -> AsyncIterator[PluginRunners]:
    with contextlib.closing(NativePool()) as processes:
        yield PluginRunners(PluginExecutor(marker=f"test-{os.urandom(8).hex()}"), AUTO, processes)


@pytest.fixture
def binaries(tmp_path: Path) -> Path:
    """A folder with the reference plugins of a chain, from which tests remove some."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bridge", "portmap", "tuning", "host-local"):
        (folder / name).symlink_to(REFERENCE / name)
    return folder


def planned(folder: Path, *native: bool, version: str = "1.0.0") -> PlannedAttachment:
    ipam = {"type": "host-local", "dataDir": str(folder / "ipam"), "subnet": "10.77.0.0/24"}
    config = conflist.parse(
        {
            "cniVersion": version,
            "name": "net",
            "plugins": [
                {"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": ipam},
                {"type": "portmap", "capabilities": {"portMappings": True}},
                {"type": "tuning", "dataDir": str(folder / "tuning"), "mac": MAC, "mtu": 1400},
            ],
        }
    )
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    return PlannedAttachment(
        network=NetworkName("default/net"),
        ifname=IfName("net1"),
        cni_name=config.name,
        cni_version=config.cni_version,
        plugins=conflist.render(config, capability_args={"portMappings": [mapping]}),
        cni_args="IgnoreUnknown=true;K8S_POD_NAME=p",
        native=native,
    )


async def check(
    runners: PluginRunners, attachment: PlannedAttachment, there: Target, result: str
) -> list[tuple[str, str, int]]:
    """Check without portmap, which in version 1.1.1 fails its own CHECK."""
    plugins, native = attachment.plugins[::2], attachment.native[::2]
    return verbs(await chain.check(runners, replace(attachment, plugins=plugins, native=native), there, result, 30))


def target(netns: str, folder: Path) -> Target:
    return Target(container_id="sandbox", netns=netns, plugin_folders=(str(folder),))


def verbs(runs: tuple[PluginRun, ...]) -> list[tuple[str, str, int]]:
    return [(run.type, run.command, run.exit_code) for run in runs]


def mappings() -> str:
    ran = subprocess.run(["iptables", "-t", "nat", "-S"], check=True, capture_output=True, text=True)
    return "\n".join(line for line in ran.stdout.splitlines() if "--dport 8080" in line)


def reserved(folder: Path) -> list[str]:
    return [each.name for each in (folder / "ipam" / "net").glob("10.*")]


def assert_attached(netns: str, folder: Path, result: Any) -> None:
    inside = shown("link show net1", netns)[0]
    assert (inside["address"], inside["mtu"]) == (MAC, 1400)
    assert [each["mac"] for each in result["interfaces"] if each["name"] == "net1"] == [MAC]
    assert result["ips"][0]["address"] == "10.77.0.2/24"
    assert "10.77.0.2:80" in subprocess.run(["iptables-save"], check=True, capture_output=True, text=True).stdout
    assert reserved(folder) == ["10.77.0.2"]


def assert_gone(netns: str, folder: Path) -> None:
    assert names(netns) == {"lo"}
    assert mappings() == ""
    assert reserved(folder) == []
    assert os.listdir(folder / "tuning") == []


async def test_a_result_is_passed_on_between_native_and_executed(
    netns: str, tmp_path: Path, binaries: Path, runners: PluginRunners
) -> None:
    attachment = planned(tmp_path, True, False, True)
    chain.require(runners, attachment, target(netns, binaries), Phase.ADD)
    printed, runs = await chain.add(runners, attachment, target(netns, binaries), 30)
    assert verbs(runs) == [("bridge", "ADD", 0), ("portmap", "ADD", 0), ("tuning", "ADD", 0)]
    assert "".join(runs[1].stdout.split()), "it was executed, and said so on its standard output"
    assert runs[0].stdout == ""
    assert_attached(netns, tmp_path, json.loads(printed))
    checked = await check(runners, attachment, target(netns, binaries), printed)
    assert checked == [("bridge", "CHECK", 0), ("tuning", "CHECK", 0)]
    runs = await chain.delete(runners, attachment, target(netns, binaries), printed, 30)
    assert verbs(runs) == [("tuning", "DEL", 0), ("portmap", "DEL", 0), ("bridge", "DEL", 0)]
    assert_gone(netns, tmp_path)


WAYS = [(True, False, True), (False, False, False), (True, False, False), (False, False, True)]


@pytest.mark.parametrize("made", WAYS)
@pytest.mark.parametrize("undone", WAYS)
async def test_native_and_executed_check_and_delete_each_others_links(
    netns: str,
    tmp_path: Path,
    binaries: Path,
    runners: PluginRunners,
    made: tuple[bool, ...],
    undone: tuple[bool, ...],
) -> None:
    printed, _ = await chain.add(runners, planned(tmp_path, *made), target(netns, binaries), 30)
    assert_attached(netns, tmp_path, json.loads(printed))
    after = planned(tmp_path, *undone)
    await check(runners, after, target(netns, binaries), printed)
    await chain.delete(runners, after, target(netns, binaries), printed, 30)
    assert_gone(netns, tmp_path)
    await chain.delete(runners, planned(tmp_path, *made), target(netns, binaries), printed, 30)
    assert_gone(netns, tmp_path)


async def test_native_plugins_need_no_binary(
    netns: str, tmp_path: Path, binaries: Path, runners: PluginRunners
) -> None:
    for name in ("bridge", "tuning", "host-local"):
        (binaries / name).unlink()
    attachment = planned(tmp_path, True, False, True)
    chain.require(runners, attachment, target(netns, binaries), Phase.ADD)
    printed, _ = await chain.add(runners, attachment, target(netns, binaries), 30)
    await chain.delete(runners, attachment, target(netns, binaries), printed, 30)
    assert_gone(netns, tmp_path)
    with pytest.raises(PluginFailedError, match="plugin bridge is not in") as caught:
        chain.require(runners, planned(tmp_path, False, False, True), target(netns, binaries), Phase.ADD)
    assert caught.value.failure.error_class is ErrorClass.PLUGIN_MISSING
    (binaries / "portmap").unlink()
    with pytest.raises(PluginFailedError, match="plugin portmap is not in"):
        chain.require(runners, attachment, target(netns, binaries), Phase.ADD)


async def test_an_executed_plugin_without_binary_is_deleted_natively(
    netns: str, tmp_path: Path, binaries: Path, runners: PluginRunners
) -> None:
    attachment = planned(tmp_path)
    printed, _ = await chain.add(runners, attachment, target(netns, binaries), 30)
    for name in ("bridge", "tuning", "host-local"):
        (binaries / name).unlink()
    await check(runners, attachment, target(netns, binaries), printed)
    runs = await chain.delete(runners, attachment, target(netns, binaries), printed, 30)
    assert verbs(runs) == [("tuning", "DEL", 0), ("portmap", "DEL", 0), ("bridge", "DEL", 0)]
    assert_gone(netns, tmp_path)


async def test_an_error_names_its_plugin_and_a_del_removes_the_rest(
    netns: str, tmp_path: Path, binaries: Path, runners: PluginRunners
) -> None:
    attachment = planned(tmp_path, True, False, True)
    config = json.loads(attachment.plugins[2]) | {"mtu": 7}
    attachment = replace(attachment, plugins=(*attachment.plugins[:2], json.dumps(config)))
    with pytest.raises(
        PluginFailedError, match="tuning failed to add net1 of default/net: can't set MTU 7 of net1"
    ) as caught:
        await chain.add(runners, attachment, target(netns, binaries), 30)
    assert (caught.value.failure.code, caught.value.failure.plugin_type) == (999, "tuning")
    assert verbs(caught.value.runs) == [("bridge", "ADD", 0), ("portmap", "ADD", 0), ("tuning", "ADD", 1)]
    await chain.delete(runners, attachment, target(netns, binaries), None, 30)
    assert_gone(netns, tmp_path)


def newer(tmp_path: Path) -> PlannedAttachment:
    """A chain in a version that has GC and STATUS, which the reference plugins 1.1.1 do not support."""
    ipam = {
        "type": "host-local",
        "dataDir": str(tmp_path / "ipam"),
        "subnet": "10.77.0.0/29",
        "rangeStart": "10.77.0.6",
    }
    config = conflist.parse(
        {
            "cniVersion": "1.1.0",
            "name": "net",
            "plugins": [
                {"type": "bridge", "bridge": "br0", "ipam": ipam},
                {"type": "log"},
                {"type": "tuning", "dataDir": str(tmp_path / "tuning"), "mtu": 1400},
            ],
        }
    )
    return PlannedAttachment(
        network=NetworkName("default/net"),
        ifname=IfName("net1"),
        cni_name="net",
        cni_version="1.1.0",
        plugins=conflist.render(config),
        native=(True, False, True),
    )


async def test_gc_and_status_reach_every_plugin_of_the_chain(
    netns: str, tmp_path: Path, binaries: Path, runners: PluginRunners
) -> None:
    script = binaries / "log"
    script.write_text(
        f"#!/bin/sh\necho $CNI_COMMAND >> {tmp_path}/log\n"
        """[ "$CNI_COMMAND" != ADD ] || sed 's/.*"prevResult"://; s/}$//'\n"""
    )
    script.chmod(0o755)
    attachment = newer(tmp_path)
    for name in ("bridge", "tuning", "host-local"):
        (binaries / name).unlink()
    there = target(netns, binaries)
    assert verbs(await chain.status(runners, attachment, there, 30)) == [
        (kind, "STATUS", 0) for kind in ("bridge", "log", "tuning")
    ]
    printed, _ = await chain.add(runners, attachment, there, 30)
    assert shown("link show net1", netns)[0]["mtu"] == 1400
    with pytest.raises(PluginFailedError, match=r"bridge is not ready to serve default/net: .* are taken") as caught:
        await chain.status(runners, attachment, there, 30)
    assert caught.value.failure.code == 50
    await chain.gc(runners, attachment, there, [("sandbox", "net1")], 30)
    assert reserved(tmp_path) == ["10.77.0.6"]
    runs = await chain.gc(runners, attachment, there, [("another", "net1")], 30)
    assert verbs(runs) == [(kind, "GC", 0) for kind in ("bridge", "log", "tuning")]
    assert reserved(tmp_path) == []
    await chain.status(runners, attachment, there, 30)
    await chain.delete(runners, attachment, there, printed, 30)
    assert (tmp_path / "log").read_text().split() == ["STATUS", "ADD", "GC", "GC", "STATUS", "DEL"]
    assert names(netns) == {"lo"}
