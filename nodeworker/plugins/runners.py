"""Choose how each plugin is run: natively, or by executing its binary."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, cast

import msgspec

from events.schema import PlannedAttachment
from nodeworker.plugins.api import PluginError, Runner
from nodeworker.plugins.exec import PluginExecutor, find
from nodeworker.plugins.native.jobs import LinkRemoval
from nodeworker.plugins.native.pool import NativePool
from nodeworker.plugins.native.registry import AUTO, Switch, interface_plugin, link_removable_first, obstacle
from nodeworker.plugins.native.runner import NativeRunner, summary_of
from nodeworker.plugins.spec.conflist import type_of


class PluginRunners:
    """Chooses how each plugin is run: as planned, or the other way if its binary or its native form is missing.

    It is the ``nodeworker.plugins.api.Runners`` of a worker. Both ways leave and find the same on the node, so an
    attachment whose binary was removed can still be detached. *switch* is for IPAM plugins, which no plan mentions.
    """

    def __init__(self, executor: PluginExecutor, switch: Switch, pool: NativePool) -> None:
        self._executor = executor
        self._switch = switch
        self._pool = pool
        self._native = NativeRunner(executor, switch, pool)

    def runner(self, config: str, native: bool, plugin_folders: Sequence[str]) -> Runner:
        """See ``api.Runners``."""
        plugin_type = type_of(config)
        if native:
            return self._executor if interface_plugin(plugin_type) is None else self._native
        decoded = cast("dict[str, Any]", msgspec.json.decode(config))
        executed = _installed(plugin_type, plugin_folders) or obstacle(plugin_type, decoded, AUTO)
        return self._executor if executed else self._native

    def require(self, config: str, native: bool, plugin_folders: Sequence[str]) -> None:
        """See ``api.Runners``."""
        summary = summary_of(config.encode(), self._switch)
        if not native:
            find(type_of(config), plugin_folders)
        elif summary.ipam_type and not summary.native_ipam:
            find(summary.ipam_type, plugin_folders)

    def is_one_pool_job(self, attachment: PlannedAttachment) -> bool:
        """See ``api.Runners``."""
        if attachment.native != (True,) or attachment.device_info:
            return False
        (config,) = attachment.plugins
        summary = summary_of(config.encode(), self._switch)
        return interface_plugin(type_of(config)) is not None and (summary.native_ipam or not summary.ipam_type)

    async def remove_links(self, attachments: Sequence[PlannedAttachment], netns: str) -> None:
        """See ``api.Runners``: the kernel removes several interfaces in the time of one.

        In a chain the DEL of other plugins comes before that of the plugin with the interface, so chains are left out,
        and all that is deleted after them.
        """
        together = list(takewhile(_link_removable_first, attachments))
        if netns and len(together) > 1:
            removal = LinkRemoval(netns=netns, ifnames=tuple(each.ifname for each in together))
            await self._pool.submit(removal, netns)  # if that failed, the DEL of each plugin says why


def _link_removable_first(attachment: PlannedAttachment) -> bool:
    return attachment.native == (True,) and link_removable_first(type_of(attachment.plugins[0]))


def _installed(plugin_type: str, plugin_folders: Sequence[str]) -> bool:
    try:
        find(plugin_type, plugin_folders)
    except PluginError:
        return False
    return True
