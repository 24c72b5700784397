"""Run each plugin the way that was planned, natively or by executing it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, cast

import msgspec

from events.schema import PlannedAttachment
from nodeworker.plugins.exec import PluginError, PluginExecutor, Runner, find, type_of
from nodeworker.plugins.native.api import NativeError
from nodeworker.plugins.native.jobs import Clearing
from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.native.registry import AUTO, Switch, interface_plugin, is_gone_with_its_link, obstacle
from nodeworker.plugins.native.runner import NativeRunner, way_of


class PluginRunners:
    """Runs each plugin the way that was planned, whatever *switch* says by now, or the other where that one is closed.

    Both ways leave and find the same on the node, so a binary that was removed since its ADD strands nobody.
    """

    def __init__(self, executor: PluginExecutor, switch: Switch, processes: NativePool) -> None:
        self._executor = executor
        self._switch = switch
        self._processes = processes
        self._native = NativeRunner(executor, switch, processes)

    def runner(self, plugin: str, native: bool, search: Sequence[str]) -> Runner:
        """See ``Runners``."""
        kind = type_of(plugin)
        if native:
            return self._executor if interface_plugin(kind) is None else self._native
        config = cast("dict[str, Any]", msgspec.json.decode(plugin))
        return self._executor if _installed(kind, search) or obstacle(kind, config, AUTO) else self._native

    def require(self, plugin: str, native: bool, search: Sequence[str]) -> None:
        """See ``Runners``."""
        way = way_of(plugin.encode(), self._switch)
        if not native:
            find(type_of(plugin), search)
        elif way.ipam and not way.native_ipam:
            find(way.ipam, search)

    def runs_in_pool(self, attachment: PlannedAttachment) -> bool:
        """See ``Runners``."""
        if attachment.native != (True,) or attachment.device_info:
            return False
        (plugin,) = attachment.plugins
        way = way_of(plugin.encode(), self._switch)
        return interface_plugin(type_of(plugin)) is not None and (way.native_ipam or not way.ipam)

    async def remove_links(self, attachments: Sequence[PlannedAttachment], netns: str) -> None:
        """See ``Runners``: the kernel takes interfaces away together in the time of one.

        Of a chain, other plugins' DEL comes before that of the one with the interface, so chains and all that is
        deleted after them have to wait for their turn.
        """
        together = list(takewhile(_is_gone_with_its_link, attachments))
        if netns and len(together) > 1:
            clearing = Clearing(netns=netns, ifnames=tuple(each.ifname for each in together))
            with contextlib.suppress(NativeError):  # where that did not do, each plugin's DEL says why
                await self._processes.do(clearing, netns)


def _is_gone_with_its_link(attachment: PlannedAttachment) -> bool:
    return attachment.native == (True,) and is_gone_with_its_link(type_of(attachment.plugins[0]))


def _installed(plugin_type: str, search: Sequence[str]) -> bool:
    try:
        find(plugin_type, search)
    except PluginError:
        return False
    return True
