"""Add the compiled CNI entry point to the wheel, which makes it a wheel for its architectures."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parents[2]))  # hatchling runs this file by its path, outside its package

from nodeworker import shim
from nodeworker.shim.build import build, print_report, requirements

ARCHITECTURES = "PLUMBLINE_WHEEL_ARCHITECTURES"
"""The variable with the architectures of a wheel, such as "amd64 arm64"; without it, the wheel is for this machine."""


class EntryPointHook(BuildHookInterface):
    """Builds into the source tree, where an editable installation uses it."""

    def dependencies(self) -> list[str]:
        """Return the compiler, unless the entry points are in the cache."""
        return requirements(_architectures()) if self.target_name == "wheel" else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the entry points and register them with hatchling."""
        if self.target_name != "wheel":
            return
        architectures = _architectures()
        for architecture in architectures:
            binary = shim.path(architecture)
            build(architecture, binary, _report)
            if version != "editable":
                build_data["force_include"][str(binary)] = f"nodeworker/shim/{binary.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platforms(architectures)}"


def _architectures() -> list[str]:
    return os.environ.get(ARCHITECTURES, "").split() or [shim.architecture()]


def _platforms(architectures: list[str]) -> str:
    """Return the platform tags of a wheel with static programs for *architectures*: any C library will do."""
    machines = [machine for machine, name in shim.ARCHITECTURES.items() if name in architectures]
    return ".".join(f"{libc}_{machine}" for libc in ("manylinux_2_17", "musllinux_1_1") for machine in machines)


def _report(sentence: str) -> None:
    """Print *sentence* also on the terminal: pip hides what a build prints."""
    print_report(sentence)
    if not sys.stderr.isatty():
        try:
            with Path("/dev/tty").open("w") as terminal:
                terminal.write(f"\r\nentry point: {sentence}\n")
        except OSError:
            pass  # no terminal, so no person waits at one
