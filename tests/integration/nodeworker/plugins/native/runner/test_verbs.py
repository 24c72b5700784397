"""The runner of native plugins does every verb, and reports errors as the reference does."""

from __future__ import annotations

import os
from typing import Any

import pytest

from events.schema import ErrorClass
from nodeworker.plugins.api import PluginError
from nodeworker.plugins.native.runner import NativeRunner
from tests.support.plugins.native_harness import ip, names, shown
from tests.support.plugins.runner_harness import Plugin, addresses, reserved, valid

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.mark.parametrize("version", ["0.3.1", "1.0.0", "1.1.0"])
async def test_the_mtu_is_recorded_and_not_printed(macvlan: Plugin, version: str) -> None:
    macvlan.config["cniVersion"] = version
    run, result = await macvlan.run("ADD")
    assert run.mtu == shown("link show net1", macvlan.netns)[0]["mtu"] == 1450
    assert "mtu" not in result["interfaces"][0]
    assert (await macvlan.run("DEL"))[0].mtu == 0


async def test_an_mtu_of_an_earlier_plugin_is_passed_on(macvlan: Plugin, runner: NativeRunner) -> None:
    result = await macvlan.done("ADD")
    tuning = Plugin(runner, macvlan.netns, macvlan.folder, {"type": "tuning", "dataDir": str(macvlan.folder)})
    run, printed = await tuning.run("ADD", mtu=1400, prevResult=result)
    assert (run.mtu, "mtu" in printed["interfaces"][0]) == (1400, False)
    result["interfaces"][0]["mtu"] = 1450
    run, printed = await tuning.run("ADD", mtu=1300, prevResult=result)
    assert (run.mtu, printed["interfaces"][0]["mtu"]) == (1300, 1300)


async def test_every_verb_of_a_bridge_with_host_local(bridge: Plugin) -> None:
    await bridge.done("STATUS")
    result = await bridge.done("ADD")
    assert result["cniVersion"] == "1.1.0"
    assert [each["name"] for each in result["interfaces"]][::2] == ["br0", "net1"]
    assert result["ips"] == [{"interface": 2, "address": "10.77.0.2/29", "gateway": "10.77.0.1"}]
    assert addresses(bridge.netns) == ["10.77.0.2/29"]
    await bridge.done("CHECK", prevResult=result)
    await bridge.done("GC", **valid(("c1", "net1")))
    assert reserved(bridge) == {"10.77.0.2": "c1\r\nnet1"}
    await bridge.done("DEL", prevResult=result)
    await bridge.done("DEL", prevResult=result)
    assert reserved(bridge) == {}
    assert names(bridge.netns) == {"lo"}


async def test_every_verb_of_a_macvlan_with_static(macvlan: Plugin) -> None:
    await macvlan.done("STATUS")
    result = await macvlan.done("ADD")
    assert addresses(macvlan.netns) == ["10.77.0.5/24"]
    await macvlan.done("CHECK", prevResult=result)
    await macvlan.done("GC", **valid())
    assert addresses(macvlan.netns) == ["10.77.0.5/24"]
    await macvlan.done("DEL", prevResult=result)
    assert names(macvlan.netns) == {"lo"}


async def test_gc_frees_addresses_without_a_valid_attachment(bridge: Plugin) -> None:
    await bridge.done("ADD")
    (bridge.folder / "net" / "10.77.0.4").write_bytes(b"gone\r\nnet1")
    await bridge.done("GC", **valid(("c1", "net1")))
    assert reserved(bridge) == {"10.77.0.2": "c1\r\nnet1"}


@pytest.mark.parametrize("listed", [None, "all", [{"containerID": "c1"}], [{"containerID": 1, "ifname": "net1"}]])
async def test_gc_without_a_usable_list_frees_nothing(bridge: Plugin, listed: Any) -> None:
    await bridge.done("ADD")
    keys = {} if listed is None else {"cni.dev/valid-attachments": listed}
    code, words = await bridge.refused("GC", **keys)
    assert code == 7
    assert "nothing is freed" in words
    assert reserved(bridge) == {"10.77.0.2": "c1\r\nnet1"}


async def test_status_fails_when_no_address_is_left(bridge: Plugin) -> None:
    for container_id in ("c2", "c3", "c4", "c5"):
        await bridge.done("STATUS")
        await bridge.done("ADD", container_id=container_id)
        ip("link del net1", bridge.netns)
    await bridge.done("ADD")
    code, words = await bridge.refused("STATUS")
    assert code == 50
    assert "all addresses of 10.77.0.1-10.77.0.6 are taken" in words
    await bridge.done("DEL")
    await bridge.done("STATUS")


async def test_an_error_is_an_object_with_the_code_of_the_reference(bridge: Plugin, macvlan: Plugin) -> None:
    result = await bridge.done("ADD")
    ip("link del net1", bridge.netns)
    assert await bridge.refused("CHECK", prevResult=result) == (999, "interface net1 is gone: recreate the pod")
    assert await bridge.refused("CHECK", prevResult={"ips": [{"address": "x"}]}) == (
        6,
        'prevResult can\'t be read: ips[0] of the result: "x" is not an IP address with a prefix length: '
        "write it like 10.1.2.3/24",
    )
    bridge.netns = "/run/netns/plumbline-test-gone"
    code, words = await bridge.refused("ADD")
    assert (code, "can't be used as a network namespace" in words) == (4, True)
    assert await bridge.refused("LIST") == (4, "LIST is not a CNI verb")
    macvlan.config["ipam"]["addresses"] = [{"address": "10.77.0.5"}]
    assert (await macvlan.refused("ADD"))[0] == 999
    assert names(macvlan.netns) == {"lo"}


async def test_a_plugin_that_could_not_start_has_its_own_error(runner: NativeRunner, bridge: Plugin) -> None:
    how: dict[str, Any] = {"command": "ADD", "env": {}, "stdin": b"{}", "plugin_folders": ()}
    with pytest.raises(PluginError, match="no time was left") as caught:
        await runner.run("bridge", **how, timeout=0)
    assert caught.value.error_class is ErrorClass.PLUGIN_TIMEOUT
    with pytest.raises(PluginError, match="has no native form") as caught:
        await runner.run("portmap", **how, timeout=1)
    assert caught.value.error_class is ErrorClass.PLUGIN_MISSING
    bridge.config["ipam"] = {"type": "dhcp"}
    with pytest.raises(PluginError, match="plugin dhcp is not in") as caught:
        await bridge.run("ADD")
    assert caught.value.error_class is ErrorClass.PLUGIN_MISSING


async def test_a_configuration_larger_than_a_pipe_is_accepted(bridge: Plugin) -> None:
    await bridge.done("ADD", args={"note": "x" * (1 << 20)})
    await bridge.done("DEL", args={"note": "x" * (1 << 20)})
