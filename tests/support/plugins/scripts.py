"""Plugins as shell scripts, and real namespaces, for tests of executed plugins."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from events.schema import IfName, NetworkName, PlannedAttachment
from nodeworker.plugins.spec import conflist
from tests.support.waiting import BOUND

_CLONE_NEWNET = 0x40000000


class Plugins:
    """A folder of plugins that tests write as shell scripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def script(self, name: str, body: str) -> Path:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    def recorder(self, name: str, log: Path, then: str = "") -> Path:
        """A plugin that appends its input to *log*, as one line of JSON, and continues with *then*."""
        return self.script(
            name,
            f"""config=$(cat)
printf '{{"type":"{name}","command":"%s","env":"%s","config":%s}}\\n' \\
    "$CNI_COMMAND" "$(env | grep -e ^CNI_ -e ^PLUMBLINE_ | sort | tr '\\n' ' ')" "$config" >> {log}
{then}""",
        )


def calls(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def planned(config: dict[str, Any] | str, *, ifname: str = "net1", cni_args: str = "") -> PlannedAttachment:
    """The plan of one attachment to *config*, as resolving makes it."""
    parsed = conflist.parse(config)
    return PlannedAttachment(
        network=NetworkName(f"default/{parsed.name}"),
        ifname=IfName(ifname),
        cni_name=parsed.name,
        cni_version=parsed.cni_version,
        plugins=conflist.render(parsed),
        cni_args=cni_args,
        disable_check=parsed.disable_check,
        disable_gc=parsed.disable_gc,
    )


@contextlib.contextmanager
def own_node() -> Iterator[None]:
    """Move this thread, and what it starts, to a fresh network namespace: all that plugins make "on the node" goes
    with it.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _libc("unshare", _CLONE_NEWNET)
        yield
    finally:
        _libc("setns", before, _CLONE_NEWNET)
        os.close(before)


def _libc(function: str, *args: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc[function](*args) != 0:
        raise OSError(ctypes.get_errno(), function)


@contextlib.contextmanager
def namespace() -> Iterator[str]:
    """The name of a network namespace that is removed afterwards."""
    name = f"plumbline-test-{os.urandom(4).hex()}"
    ip("netns", "add", name)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def ip(*args: str) -> str:
    return subprocess.run(["ip", *args], check=True, capture_output=True, text=True).stdout


def addresses(netns: str, ifname: str) -> list[str]:
    shown = json.loads(ip("-n", netns, "-json", "addr", "show", "dev", ifname))
    return [f"{each['local']}/{each['prefixlen']}" for each in shown[0]["addr_info"] if each["scope"] == "global"]


def links(netns: str) -> set[str]:
    return {link["ifname"] for link in json.loads(ip("-n", netns, "-json", "link"))}


async def gone(pid: int) -> None:
    """Return when the process has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(pidfd, lambda: ended.done() or ended.set_result(None))
    try:
        async with asyncio.timeout(BOUND):
            await ended
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


RESULT = '{"cniVersion":"%s","interfaces":[{"name":"net1"}]}'
"""A result of ADD in a version."""


def network(version: str, *types: str, **more: Any) -> dict[str, Any]:
    """Return a configuration list with plugins of *types*, each with a capability, and *more* keys."""
    plugin = {"capabilities": {"mac": True}, "runtimeConfig": {"mac": "m"}}
    return {"cniVersion": version, "name": "net", "plugins": [{"type": each, **plugin} for each in types], **more}


def variables(call: dict[str, Any]) -> dict[str, str]:
    """Return the CNI variables of a recorded *call*."""
    return dict(pair.split("=", 1) for pair in call["env"].split())
