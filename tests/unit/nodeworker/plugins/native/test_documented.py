"""Every option of a native plugin is documented in ``docs/reference/native-plugins.md``."""

from __future__ import annotations

import re

import msgspec
import pytest

from nodeworker.plugins.native import registry
from nodeworker.plugins.native.kit.plugin_config import PluginConfig
from tests.support.repository import REPOSITORY

TEXT = (REPOSITORY / "docs/reference/native-plugins.md").read_text(encoding="utf-8")
COMMON = {field.encode_name for field in msgspec.structs.fields(PluginConfig)}


def row(plugin_type: str) -> str:
    """Return the documentation of *plugin_type*: its row, and the section with its name, if any."""
    rows = re.findall(rf"^\| `{plugin_type}` \|.*$", TEXT, re.MULTILINE)
    section = re.search(rf"^## {plugin_type}$.*", TEXT, re.MULTILINE | re.DOTALL)
    assert rows, f"{plugin_type} is not documented"
    return rows[0] + (section.group() if section else "")


@pytest.mark.parametrize("plugin_type", sorted(registry.TYPES))
def test_every_native_plugin_and_option_is_documented(plugin_type: str) -> None:
    said = row(plugin_type)
    members = vars(registry.interface_plugin(plugin_type) or registry.ipam_plugin(plugin_type)).values()
    structs = [each for each in members if isinstance(each, type) and issubclass(each, PluginConfig)]
    options = {field.encode_name for struct in structs for field in msgspec.structs.fields(struct)} - COMMON
    assert {name for name in options if f"`{name}`" not in said} == set()
