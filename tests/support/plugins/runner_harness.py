"""A plugin of a network, run by the runner of native plugins as a chain would run it."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from events.schema import PluginRun
from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.native.runner import NativeRunner
from tests.support.plugins.native_harness import shown


class Plugin:
    """A plugin of a network, run as a chain would run it."""

    def __init__(self, runner: NativeRunner, netns: str, folder: Path, config: dict[str, Any]) -> None:
        self.runner = runner
        self.netns = netns
        self.folder = folder
        self.config: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net"} | config

    async def run(
        self, command: str, *, container_id: str = "c1", ifname: str = "net1", **more: Any
    ) -> tuple[PluginRun, Any]:
        """Return the run and its output; *more* are keys of the configuration."""
        env = {"CNI_PATH": str(self.folder)}
        if command in {"ADD", "CHECK", "DEL"}:
            env |= {"CNI_CONTAINERID": container_id, "CNI_NETNS": self.netns, "CNI_IFNAME": ifname, "CNI_ARGS": ""}
        run, stdout = await self.runner.run(
            self.config["type"],
            command=command,
            env=env,
            stdin=json.dumps(self.config | more).encode(),
            plugin_folders=(str(self.folder),),
            timeout=30,
        )
        assert (run.type, run.command, run.stderr) == (self.config["type"], command, "")
        return run, json.loads(stdout) if stdout else None

    async def done(self, command: str, **more: Any) -> Any:
        run, printed = await self.run(command, **more)
        assert run.exit_code == 0, printed
        return printed

    async def refused(self, command: str, **more: Any) -> tuple[int, str]:
        """Return the code and the message."""
        run, printed = await self.run(command, **more)
        assert run.exit_code == 1
        assert printed["cniVersion"] == "1.1.0"
        return printed["code"], printed["msg"]


def valid(*attachments: tuple[str, str]) -> dict[str, Any]:
    listed = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in attachments]
    return {"cni.dev/valid-attachments": listed, "cni.dev/attachments": listed}


def reserved(plugin: Plugin) -> dict[str, str]:
    return {file.name: file.read_bytes().decode() for file in (plugin.folder / "net").glob("10.*")}


def addresses(netns: str) -> list[str]:
    found = shown("addr show net1", netns)[0]["addr_info"]
    return [f"{each['local']}/{each['prefixlen']}" for each in found if each["scope"] == "global"]


def interfaces(netns: str) -> list[str]:
    """Return the names of the namespace's interfaces, in the order in which they were made."""
    words = ["ip", "-n", Path(netns).name, "-j", "link", "show"]
    shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return [link["ifname"] for link in json.loads(shown)]


@contextlib.contextmanager
def alone(processes: NativePool) -> Iterator[None]:
    """Make the first process do all jobs."""
    others = processes._processes[1:]
    processes._processes[1:] = [processes._processes[0] for _ in others]
    try:
        yield
    finally:
        processes._processes[1:] = others
