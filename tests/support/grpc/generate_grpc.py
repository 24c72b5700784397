"""Make the code that speaks to the kubelet and to the container runtime from its definition; run it after a change."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.repository import REPOSITORY

DEFINITIONS = (
    Path("nodeworker/planning/devices/_generated/podresources.proto"),
    Path("nodeworker/leaks/evidence/_generated/cri.proto"),
)

_MARK = "# ruff: noqa\n# fmt: off\n"
"""Keeps linter and formatter from making it something else."""


def generated() -> dict[Path, str]:
    """Return the text of each file, by path in the repository."""
    made: dict[Path, str] = {}
    for definition in DEFINITIONS:
        with tempfile.TemporaryDirectory() as out:
            outs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpclib_python")]
            command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outs, str(definition)]
            plugins = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
            subprocess.run(command, check=True, cwd=REPOSITORY, env={**os.environ, "PATH": plugins})
            folder = definition.parent
            made |= {folder / path.name: _MARK + path.read_text() for path in sorted((out / folder).iterdir())}
    return made


if __name__ == "__main__":
    for path, text in generated().items():
        (REPOSITORY / path).write_text(text)
