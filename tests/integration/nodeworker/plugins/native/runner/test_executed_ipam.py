"""A native plugin executes an IPAM plugin that is not native."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nodeworker.plugins.native.runner import NativeRunner
from tests.support.plugins.native_harness import names, shown
from tests.support.plugins.runner_harness import Plugin, addresses, valid

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


SCRIPT = """#!/bin/sh
printf '%s %s %s\\n' "$CNI_COMMAND" "$CNI_CONTAINERID" "$(ip -n {netns} -o link show net1 2>/dev/null | wc -l)" >> {log}
cat >> {log}.stdin
{then}
"""


ASSIGN = """echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.77.0.9/24"}], "routes": [{"dst": "10.88.0.0/16"}]}'"""


class Executed(Plugin):
    """A native bridge whose IPAM plugin is a script."""

    def script(self, then: str) -> None:
        path = self.folder / "own-ipam"
        text = SCRIPT.replace("{netns}", self.netns.rpartition("/")[2]).replace("{log}", str(self.folder / "log"))
        path.write_text(text.replace("{then}", then))
        path.chmod(0o755)

    def called(self) -> list[str]:
        """Return the verbs, each with its container and the number of interfaces net1."""
        return (self.folder / "log").read_text().splitlines()


@pytest.fixture
def executed(runner: NativeRunner, netns: str, tmp_path: Path) -> Executed:
    config = {"type": "bridge", "bridge": "br0", "ipam": {"type": "own-ipam"}}
    return Executed(runner, netns, tmp_path, config)


async def test_an_ipam_plugin_that_is_not_native_is_executed_for_every_verb(executed: Executed) -> None:
    executed.script(f'[ "$CNI_COMMAND" != ADD ] || {ASSIGN}')
    await executed.done("STATUS")
    result = await executed.done("ADD")
    assert addresses(executed.netns) == ["10.77.0.9/24"]
    assert shown("route show 10.88.0.0/16", executed.netns)[0]["dev"] == "net1"
    await executed.done("CHECK", prevResult=result)
    await executed.done("GC", **valid(("c1", "net1")))
    await executed.done("DEL", prevResult=result)
    assert executed.called() == ["STATUS  0", "ADD c1 0", "CHECK c1 1", "GC  1", "DEL c1 0"]
    given = (executed.folder / "log.stdin").read_text()
    assert '"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "net1"}]' in given


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
async def test_an_error_of_an_executed_ipam_plugin_is_the_plugins(executed: Executed, command: str) -> None:
    executed.script(ASSIGN)
    result = await executed.done("ADD")
    executed.script("""echo '{"code": 51, "msg": "the server is down"}'; exit 1""")
    if command == "ADD":
        await executed.run("DEL")
    given = valid() if command == "GC" else {"prevResult": result} if command in {"CHECK", "DEL"} else {}
    assert await executed.refused(command, **given) == (51, "IPAM plugin own-ipam: the server is down")
    assert ("net1" in names(executed.netns)) == (command not in {"ADD", "DEL"})


@pytest.mark.parametrize("then", ["echo none", "echo '{}'", "echo '{\"ips\": [{}]}'", "true"])
async def test_an_executed_ipam_plugin_must_print_a_result(executed: Executed, then: str) -> None:
    executed.script(then)
    code, words = await executed.refused("ADD")
    assert code == 999
    assert "IPAM plugin" in words
    assert names(executed.netns) == {"lo"}
