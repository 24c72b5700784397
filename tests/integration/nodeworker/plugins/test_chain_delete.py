"""DEL of one attachment: which plugins run, what they get, and what a refusal means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from events.schema import Phase
from nodeworker.errors import about
from nodeworker.plugins import chain
from nodeworker.plugins.chain import PluginFailedError, Target
from nodeworker.plugins.exec import PluginExecutor
from tests.support.plugins.scripts import RESULT, Plugins, calls, network, planned, variables

SECONDS = 30.0


@pytest.mark.parametrize(("version", "handed"), [("0.3.1", False), ("0.4.0", True), ("1.0.0", True), ("1.1.0", True)])
async def test_delete_goes_backwards_with_the_final_result(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path, version: str, handed: bool
) -> None:
    plugins.recorder("first", log)
    plugins.recorder("last", log)
    result = RESULT % version
    runs = await chain.delete(executor, planned(network(version, "first", "last")), target, result, SECONDS)
    assert [(run.type, run.command) for run in runs] == [("last", "DEL"), ("first", "DEL")]
    expected = json.loads(result) if handed else None
    assert [call["config"].get("prevResult") for call in calls(log)] == [expected, expected]


@pytest.mark.parametrize("result", [None, '{"cniVersion":"1.0', '{"cniVersion":"9.0.0"}'])
async def test_delete_does_without_a_usable_result(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path, result: str | None
) -> None:
    plugins.recorder("plugin", log)
    await chain.delete(executor, planned(network("1.0.0", "plugin")), target, result, SECONDS)
    assert "prevResult" not in calls(log)[0]["config"]


async def test_delete_names_no_namespace_when_it_is_gone(
    executor: PluginExecutor, plugins: Plugins, log: Path, marker: str
) -> None:
    plugins.recorder("plugin", log)
    target = Target(container_id="cid", netns="", plugin_folders=(str(plugins.folder),))
    await chain.delete(executor, planned(network("1.0.0", "plugin")), target, None, SECONDS)
    assert variables(calls(log)[0]) == {
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": "cid",
        "CNI_NETNS": "",
        "CNI_IFNAME": "net1",
        "CNI_ARGS": "",
        "CNI_PATH": str(plugins.folder),
        "PLUMBLINE_DELEGATE": marker,
    }


async def test_delete_continues_after_a_plugin_that_refuses(
    executor: PluginExecutor, plugins: Plugins, target: Target, log: Path
) -> None:
    plugins.recorder("first", log)
    plugins.script("middle", "exit 2")
    plugins.script("last", "exit 1")
    attachment = planned(network("1.0.0", "first", "middle", "last"))
    with pytest.raises(PluginFailedError) as raised:
        await chain.delete(executor, attachment, target, None, SECONDS)
    failure = raised.value.failure
    assert (failure.phase, failure.plugin_type) == (Phase.DEL, "last")
    assert failure.message == (
        "last failed to delete net1 of default/net: exit code 1: it gave no reason; "
        "middle failed to delete net1 of default/net: exit code 2: it gave no reason"
    )
    assert [(run.type, run.exit_code) for run in raised.value.runs] == [("last", 1), ("middle", 2), ("first", 0)]
    assert [call["command"] for call in calls(log)] == ["DEL"]


REFUSES = """echo '{"code":7,"msg":"port 0 not found"}'; exit 1"""


@pytest.mark.parametrize(
    ("types", "failing", "refusing", "held"),
    [
        (("first", "portmap"), "portmap", {"portmap": REFUSES}, ()),
        (("first", "portmap"), "portmap", {"portmap": "exit 3"}, ("portmap",)),
        (("first", "portmap"), "first", {"portmap": "exit 3"}, ()),
        (("first", "portmap", "last"), "last", {"portmap": "exit 3", "last": REFUSES}, ("portmap",)),
        (("first", "tuning", "last"), "last", {"tuning": "exit 3", "last": REFUSES}, ()),
        (("first", "portmap"), "first", {"first": REFUSES, "portmap": REFUSES}, ("portmap", "first")),
        (("first", "portmap"), "", {"portmap": REFUSES}, ("portmap",)),
        (("first", "tuning"), "", {"tuning": REFUSES}, ()),
    ],
)
async def test_what_a_refusing_plugin_may_still_have_is_known(
    executor: PluginExecutor,
    plugins: Plugins,
    target: Target,
    types: tuple[str, ...],
    failing: str,
    refusing: dict[str, str],
    held: tuple[str, ...],
) -> None:
    """*failing* refuses the ADD, with the words of REFUSES; the plugins of *refusing* then refuse the DEL."""
    attachment, of_add = planned(network("1.0.0", *types)), None
    for each in types:
        plugins.script(each, REFUSES if each == failing else "echo '{}'")
    if failing:
        with pytest.raises(PluginFailedError) as raised:
            await chain.add(executor, attachment, target, SECONDS)
        of_add = about("pod d/p", raised.value.failure)
    for each in types:
        plugins.script(each, refusing.get(each, "exit 0"))
    _, refused = await chain.sweep(executor, attachment, target, None, SECONDS)
    assert [failure.plugin_type for failure in refused.values()] == [each for each in types[::-1] if each in refusing]
    holders = chain.holders(attachment, refused, of_add)
    assert tuple(failure.plugin_type for failure in holders.values()) == held


@pytest.mark.parametrize(
    ("script", "seconds"),
    [("kill -KILL $$", SECONDS), ("echo 'panic: nil map' >&2; exit 2", SECONDS), ("exec sleep 60", 0.1)],
)
async def test_plugin_that_was_cut_short_in_add_and_del_may_still_have_something(
    executor: PluginExecutor, plugins: Plugins, target: Target, script: str, seconds: float
) -> None:
    attachment = planned(network("1.0.0", "first", "portmap"))
    alone = replace(attachment, plugins=attachment.plugins[1:])
    plugins.script("portmap", script)
    with pytest.raises(PluginFailedError) as raised:
        await chain.add(executor, alone, target, seconds)
    _, refused = await chain.sweep(executor, alone, target, None, seconds)
    assert tuple(chain.holders(attachment, refused, raised.value.failure)) == alone.plugins


@pytest.mark.parametrize(
    "body",
    [
        """echo '{"code":7,"msg":"Link not found","details":"open /x: no such file or directory"}'; exit 1""",
        "echo 'pool Not Found' >&2; exit 1",
        "echo 'stat /x: No such file or directory' >&2; exit 127",
    ],
)
async def test_failed_delete_is_never_worded_as_containerd_reads_success(
    executor: PluginExecutor, plugins: Plugins, target: Target, body: str
) -> None:
    plugins.script("plugin", body)
    with pytest.raises(PluginFailedError) as raised:
        await chain.delete(executor, planned(network("1.0.0", "plugin")), target, None, SECONDS)
    said = (raised.value.failure.message + raised.value.failure.details).lower()
    assert "missing" in said
    assert "not found" not in said
    assert "no such file" not in said


async def test_other_verbs_keep_the_plugins_words(executor: PluginExecutor, plugins: Plugins, target: Target) -> None:
    plugins.script("plugin", "echo 'Link not found' >&2; exit 1")
    with pytest.raises(PluginFailedError, match="Link not found"):
        await chain.add(executor, planned(network("1.0.0", "plugin")), target, SECONDS)
