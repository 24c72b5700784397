"""The links of several attachments are removed together, in the order of their DELs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from events.schema import IfName, NetworkName, PlannedAttachment
from nodeworker.plugins.exec import PluginExecutor
from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.native.registry import AUTO
from nodeworker.plugins.runners import PluginRunners
from tests.support.plugins.kernel_view import container, node
from tests.support.plugins.native_harness import ip, names

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def netns() -> Iterator[str]:
    with node(), container() as path:
        for name in ("net0", "net1", "net2", "net3"):
            ip(f"link add {name} type veth peer name w{name} netns {os.getpid()}", path)
        yield path


@pytest.fixture
async def runners(netns: str) -> AsyncIterator[PluginRunners]:
    with contextlib.closing(NativePool()) as processes:
        yield PluginRunners(PluginExecutor(marker="unused"), AUTO, processes)


def attachment(name: str, *plugins: str, native: bool = True) -> PlannedAttachment:
    return PlannedAttachment(
        network=NetworkName(name),
        ifname=IfName(name),
        cni_name=name,
        cni_version="1.0.0",
        plugins=tuple(f'{{"type": "{each}"}}' for each in plugins),
        native=(native,) * len(plugins),
    )


async def test_interfaces_are_removed_together(netns: str, runners: PluginRunners) -> None:
    await runners.remove_links([attachment(name, "bridge") for name in ("net3", "net2", "net1", "gone")], netns)
    assert names(netns) == {"lo", "net0"}


@pytest.mark.parametrize(
    "first",
    [
        attachment("net3", "bridge", "tuning"),
        attachment("net3", "bridge", native=False),
        attachment("net3", "host-device"),
        attachment("net3", "sbr"),
    ],
    ids=["chain", "executed", "host-device", "no own interface"],
)
async def test_links_behind_a_chain_are_not_removed_early(
    netns: str, runners: PluginRunners, first: PlannedAttachment
) -> None:
    others = [attachment(name, "macvlan") for name in ("net2", "net1", "net0")]
    await runners.remove_links([first, *others], netns)
    assert names(netns) == {"lo", "net0", "net1", "net2", "net3"}
    await runners.remove_links([*others[:2], first, others[2]], netns)
    assert names(netns) == {"lo", "net0", "net3"}


async def test_a_failed_removal_is_left_to_the_del(netns: str, runners: PluginRunners) -> None:
    await runners.remove_links([attachment("lo", "bridge"), attachment("net1", "bridge")], netns)
    await runners.remove_links([attachment("net2", "bridge"), attachment("net3", "bridge")], "/proc/self/ns/net")
    await runners.remove_links([attachment("net2", "bridge"), attachment("net3", "bridge")], "")
    assert names(netns) >= {"lo", "net0", "net2", "net3"}
