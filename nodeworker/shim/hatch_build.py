"""Add the compiled CNI entry point to the wheel, which makes it a wheel for one architecture."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parents[2]))  # hatchling runs this file by its path, outside its package

from nodeworker import shim
from nodeworker.shim.build import build


class EntryPointHook(BuildHookInterface):
    """Compiles for this machine, into the source tree, where an editable installation uses it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the entry point and register it with hatchling."""
        if self.target_name != "wheel":
            return
        binary = shim.path(shim.architecture())
        build(shim.architecture(), binary)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"
        if version != "editable":
            build_data["force_include"][str(binary)] = f"nodeworker/shim/{binary.name}"
