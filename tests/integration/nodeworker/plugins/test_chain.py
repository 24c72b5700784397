"""ADD, CHECK, GC and STATUS of one attachment: which plugins run, what they get, and what an error means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from events.schema import ErrorClass, Phase
from nodeworker.plugins import chain
from nodeworker.plugins.chain import PluginFailedError, Target
from nodeworker.plugins.exec import PluginExecutor
from tests.support.plugins.scripts import RESULT, Plugins, calls, network, planned, variables

SECONDS = 30.0


# --- ADD -------------------------------------------------------------------------------------------------------------


async def test_add_passes_each_result_to_the_next_plugin(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path
) -> None:
    first = '{"cniVersion":"1.0.0","interfaces":[{"name":"net1"}],"theirs":1}'
    last = '{ "cniVersion": "1.0.0", "ips": [{"address":"10.0.0.1/8"}], "theirs": 2 }'
    plugins.recorder("first", log, f"echo '{first}'")
    plugins.recorder("last", log, f"echo '{last}'")
    result, runs = await chain.add(executor, planned(network("1.0.0", "first", "last")), target, SECONDS)
    assert result == last
    assert [(run.type, run.command, run.exit_code) for run in runs] == [("first", "ADD", 0), ("last", "ADD", 0)]
    configs = [call["config"] for call in calls(log)]
    assert "prevResult" not in configs[0]
    assert configs[1]["prevResult"] == json.loads(first)
    assert configs[1]["runtimeConfig"] == {"mac": "m"}


def passed(log: Path) -> list[str]:
    return log.read_text().splitlines()


async def test_a_plugin_reads_the_bytes_that_were_written(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path
) -> None:
    written = '"mtu":1.4e3,"id":9007199254740993.0,"text":"\\u0041"'
    plugins.script("plugin", f"cat >> {log}; echo '{{\"theirs\":1.0}}'")
    config = f'{{"cniVersion":"1.1.0","name":"net","plugins":[{{"type":"plugin",{written}}},{{"type":"plugin"}}]}}'
    attachment = planned(config)
    await chain.add(executor, attachment, target, SECONDS)
    await chain.gc(executor, attachment, target, [], SECONDS)
    await chain.status(executor, attachment, target, SECONDS)
    read = "".join(passed(log))
    assert read.count(written) == 3
    assert '"prevResult":{"theirs":1.0,"cniVersion":"1.1.0"}' in read


async def test_add_puts_the_sandbox_into_the_environment(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path, marker: str
) -> None:
    plugins.recorder("plugin", log, "echo '{}'")
    await chain.add(executor, planned(network("1.0.0", "plugin"), cni_args="K8S_POD_NAME=a;MAC=b"), target, SECONDS)
    assert variables(calls(log)[0]) == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "cid",
        "CNI_NETNS": "/run/netns/a",
        "CNI_IFNAME": "net1",
        "CNI_ARGS": "K8S_POD_NAME=a;MAC=b",
        "CNI_PATH": f"{plugins.folder}:/opt/cni/bin",
        "PLUMBLINE_DELEGATE": marker,
    }


@pytest.mark.parametrize("version", ["0.2.0", "0.3.1", "1.1.0"])
async def test_a_result_without_version_gets_the_configurations(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path, version: str
) -> None:
    plugins.recorder("first", log, "echo '{}'")
    plugins.recorder("last", log, "echo '{}'")
    result, _ = await chain.add(executor, planned(network(version, "first", "last")), target, SECONDS)
    assert json.loads(result) == {"cniVersion": version}
    assert calls(log)[1]["config"]["prevResult"] == {"cniVersion": version}


async def test_a_result_is_passed_on_in_the_configurations_version(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path
) -> None:
    plugins.recorder("first", log, """echo '{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.1/8"}}'""")
    plugins.recorder("last", log, """echo '{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.1/8"}]}'""")
    attachment = planned(network("1.0.0", "first", "last"))
    result, _ = await chain.add(executor, attachment, target, SECONDS)
    assert json.loads(result)["cniVersion"] == "0.3.1"  # as it was printed
    expected = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/8"}]}
    assert calls(log)[1]["config"]["prevResult"] == expected
    await chain.check(executor, attachment, target, result, SECONDS)
    await chain.delete(executor, attachment, target, result, SECONDS)
    assert [call["config"]["prevResult"] for call in calls(log)[2:]] == [expected] * 4


async def test_add_stops_at_the_first_error_and_reports_what_ran(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path
) -> None:
    plugins.recorder("first", log, "echo '{}'")
    report = '{"cniVersion":"1.0.0","code":11,"msg":"pool is\\nempty","details":"10.0.0.0/30"}'
    plugins.script("second", f"cat > /dev/null; printf '%s' '{report}'; exit 1")
    plugins.recorder("third", log, "echo '{}'")
    with pytest.raises(PluginFailedError) as raised:
        await chain.add(executor, planned(network("1.0.0", "first", "second", "third")), target, SECONDS)
    failure = raised.value.failure
    assert failure.message == "second failed to add net1 of default/net: pool is empty"
    assert (failure.code, failure.details, failure.error_class) == (11, "10.0.0.0/30", ErrorClass.PLUGIN_FAILED)
    assert (failure.network, failure.ifname, failure.plugin_type) == ("default/net", "net1", "second")
    assert failure.phase is Phase.ADD
    assert [(run.type, run.exit_code) for run in raised.value.runs] == [("first", 0), ("second", 1)]
    assert len(calls(log)) == 1


@pytest.mark.parametrize(
    ("body", "error_class", "code", "reason"),
    [
        ("exit 1", ErrorClass.PLUGIN_FAILED, 100, "exit code 1: it gave no reason"),
        ("echo one >&2; echo two >&2; exit 3", ErrorClass.PLUGIN_FAILED, 100, "exit code 3: two"),
        ("echo panic; exit 2", ErrorClass.PLUGIN_FAILED, 100, "exit code 2: panic"),
        (
            "printf 'log\\npanic: no map\\n\\ngoroutine 1 [running]:\\nmain.go:249 +0xcf\\n' >&2; exit 2",
            ErrorClass.PLUGIN_FAILED,
            100,
            "exit code 2: panic: no map",
        ),
        ("echo '[]'; exit 2", ErrorClass.PLUGIN_FAILED, 100, "exit code 2: []"),
        ("""echo '{"code":0,"msg":"no"}'; exit 1""", ErrorClass.PLUGIN_FAILED, 100, "no"),
        ("""echo '{"code":"7","msg":"no"}'; exit 1""", ErrorClass.PLUGIN_FAILED, 100, "no"),
        ("kill -KILL $$", ErrorClass.PLUGIN_FAILED, 100, "ended by SIGKILL: it gave no reason"),
        ("exit 0", ErrorClass.PLUGIN_OUTPUT, 102, "the result is not JSON"),
        ("echo OK", ErrorClass.PLUGIN_OUTPUT, 102, "the result is not JSON"),
        ("printf '\\377'", ErrorClass.PLUGIN_OUTPUT, 102, "can't decode byte"),
        ("echo '[]'", ErrorClass.PLUGIN_OUTPUT, 102, "the result is not a JSON object"),
        ("""echo '{"ips":[{"address":"x"}]}'""", ErrorClass.PLUGIN_OUTPUT, 102, 'ips[0] of the result: "x" is'),
        ("""echo '{"cniVersion":"5.0.0"}'""", ErrorClass.PLUGIN_OUTPUT, 102, "'5.0.0'"),
        ("head -c 3000000 /dev/zero", ErrorClass.PLUGIN_OUTPUT, 102, "printed more than 2 MiB"),
        ("sleep 1000", ErrorClass.PLUGIN_TIMEOUT, 11, "did not finish within"),
    ],
)
async def test_a_failure_of_a_plugin_becomes_one_sentence(
    executor: PluginExecutor,
    plugins: Plugins,
    target: Target,
    body: str,
    error_class: ErrorClass,
    code: int,
    reason: str,
) -> None:
    plugins.script("bad", body)
    seconds = 0.5 if error_class is ErrorClass.PLUGIN_TIMEOUT else SECONDS
    with pytest.raises(PluginFailedError) as raised:
        await chain.add(executor, planned(network("1.0.0", "bad")), target, seconds)
    failure = raised.value.failure
    assert failure.message.startswith("bad failed to add net1 of default/net: ")
    assert reason in failure.message
    assert "\n" not in failure.message
    assert (failure.error_class, failure.code) == (error_class, code)
    assert [run.type for run in raised.value.runs] == ["bad"]


async def test_a_long_message_of_a_plugin_is_cut(executor: PluginExecutor, plugins: Plugins, target: Target) -> None:
    plugins.script("bad", "head -c 8000 /dev/zero | tr '\\0' x >&2; exit 1")
    with pytest.raises(PluginFailedError) as raised:
        await chain.add(executor, planned(network("1.0.0", "bad")), target, SECONDS)
    assert 1000 < len(raised.value.failure.message) < 1200


async def test_missing_plugin_fails_before_anything_ran(executor: PluginExecutor, target: Target) -> None:
    with pytest.raises(PluginFailedError, match=r"plugin absent is not in .* or /opt/cni/bin: install it") as raised:
        await chain.add(executor, planned(network("1.0.0", "absent")), target, SECONDS)
    assert (raised.value.failure.error_class, raised.value.failure.code) == (ErrorClass.PLUGIN_MISSING, 101)
    assert raised.value.runs == ()


async def test_the_timeout_is_for_the_whole_chain(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path
) -> None:
    plugins.recorder("quick", log, "sleep 0.4; echo '{}'")
    plugins.recorder("slow", log, "sleep 1000")
    with pytest.raises(PluginFailedError) as raised:
        await chain.add(executor, planned(network("1.0.0", "quick", "slow")), target, 0.9)
    assert raised.value.failure.error_class is ErrorClass.PLUGIN_TIMEOUT
    assert raised.value.failure.plugin_type == "slow"
    assert sum(run.seconds for run in raised.value.runs) < 5.0


# --- CHECK -----------------------------------------------------------------------------------------------------------


async def test_check_goes_forwards_with_the_final_result(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path
) -> None:
    plugins.recorder("first", log)
    plugins.recorder("last", log)
    result = RESULT % "1.0.0"
    runs = await chain.check(executor, planned(network("1.0.0", "first", "last")), target, result, SECONDS)
    assert [(run.type, run.command) for run in runs] == [("first", "CHECK"), ("last", "CHECK")]
    assert [call["config"]["prevResult"] for call in calls(log)] == [json.loads(result)] * 2


@pytest.mark.parametrize("config", [network("0.3.1", "plugin"), network("1.0.0", "plugin", disableCheck=True)])
async def test_check_runs_nothing_when_old_or_disabled(
    executor: PluginExecutor, plugins: Plugins, target: Target, config: dict[str, Any]
) -> None:
    plugins.script("plugin", "exit 1")
    assert await chain.check(executor, planned(config), target, RESULT % config["cniVersion"], SECONDS) == ()


async def test_check_fails_with_the_plugins_code(executor: PluginExecutor, plugins: Plugins, target: Target) -> None:
    plugins.script("plugin", """echo '{"code":999,"msg":"address is gone"}'; exit 1""")
    with pytest.raises(
        PluginFailedError, match="plugin failed to check net1 of default/net: address is gone"
    ) as raised:
        await chain.check(executor, planned(network("0.4.0", "plugin")), target, RESULT % "0.4.0", SECONDS)
    assert (raised.value.failure.code, raised.value.failure.phase) == (999, Phase.CHECK)


async def test_check_refuses_an_unreadable_record(executor: PluginExecutor, plugins: Plugins, target: Target) -> None:
    plugins.script("plugin", "exit 0")
    with pytest.raises(PluginFailedError, match="what ADD returned can't be read"):
        await chain.check(executor, planned(network("1.0.0", "plugin")), target, "{", SECONDS)


# --- GC and STATUS ---------------------------------------------------------------------------------------------------


async def test_gc_lists_valid_attachments_under_both_keys(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path, marker: str
) -> None:
    plugins.recorder("first", log)
    plugins.recorder("last", log)
    valid = [("cid1", "eth0"), ("cid1", "net1")]
    runs = await chain.gc(executor, planned(network("1.1.0", "first", "last")), target, valid, SECONDS)
    assert [(run.type, run.command) for run in runs] == [("first", "GC"), ("last", "GC")]
    expected = [{"containerID": "cid1", "ifname": "eth0"}, {"containerID": "cid1", "ifname": "net1"}]
    for call in calls(log):
        assert call["config"]["cni.dev/valid-attachments"] == expected
        assert call["config"]["cni.dev/attachments"] == expected
        assert call["config"].keys().isdisjoint({"prevResult", "runtimeConfig"})
        assert variables(call) == {
            "CNI_COMMAND": "GC",
            "CNI_PATH": f"{plugins.folder}:/opt/cni/bin",
            "PLUMBLINE_DELEGATE": marker,
        }


async def test_gc_with_an_empty_list_passes_it_on(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path
) -> None:
    plugins.recorder("plugin", log)
    await chain.gc(executor, planned(network("1.1.0", "plugin")), target, [], SECONDS)
    assert calls(log)[0]["config"]["cni.dev/valid-attachments"] == []


async def test_gc_continues_after_an_error_and_reports_all(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path
) -> None:
    plugins.script("first", """echo '{"code":5,"msg":"disk is full"}'; exit 1""")
    plugins.recorder("middle", log)
    plugins.script("last", "echo broken >&2; exit 1")
    with pytest.raises(PluginFailedError) as raised:
        await chain.gc(executor, planned(network("1.1.0", "first", "middle", "last")), target, [], SECONDS)
    failure = raised.value.failure
    assert failure.message == (
        "first failed to collect garbage of default/net: disk is full; "
        "last failed to collect garbage of default/net: exit code 1: broken"
    )
    assert (failure.code, failure.phase, failure.ifname) == (5, Phase.GC, "")
    assert [run.type for run in raised.value.runs] == ["first", "middle", "last"]
    assert len(calls(log)) == 1


@pytest.mark.parametrize("config", [network("1.0.0", "plugin"), network("1.1.0", "plugin", disableGC=True)])
async def test_gc_runs_nothing_when_old_or_disabled(
    executor: PluginExecutor, plugins: Plugins, target: Target, config: dict[str, Any]
) -> None:
    plugins.script("plugin", "exit 1")
    assert await chain.gc(executor, planned(config), target, [], SECONDS) == ()


async def test_status_asks_every_plugin(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path, marker: str
) -> None:
    plugins.recorder("first", log)
    plugins.recorder("last", log)
    runs = await chain.status(executor, planned(network("1.1.0", "first", "last")), target, SECONDS)
    assert [(run.type, run.command) for run in runs] == [("first", "STATUS"), ("last", "STATUS")]
    assert variables(calls(log)[0]).keys() == {"CNI_COMMAND", "CNI_PATH", "PLUMBLINE_DELEGATE"}
    assert "runtimeConfig" not in calls(log)[0]["config"]


async def test_status_keeps_the_specifications_code(executor: PluginExecutor, plugins: Plugins, target: Target) -> None:
    plugins.script("plugin", """echo '{"code":50,"msg":"daemon is down"}'; exit 1""")
    with pytest.raises(PluginFailedError, match="plugin is not ready to serve default/net: daemon is down") as raised:
        await chain.status(executor, planned(network("1.1.0", "plugin")), target, SECONDS)
    assert (raised.value.failure.code, raised.value.failure.phase) == (50, Phase.STATUS)


async def test_status_runs_nothing_below_1_1_0(executor: PluginExecutor, plugins: Plugins, target: Target) -> None:
    plugins.script("plugin", "exit 1")
    assert await chain.status(executor, planned(network("1.0.0", "plugin")), target, SECONDS) == ()
