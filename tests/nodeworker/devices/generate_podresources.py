"""Make the code that speaks the kubelet's PodResources API from its definition; run it after a change of that."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
FOLDER = Path("nodeworker", "devices")

_MARK = "# ruff: noqa\n# fmt: off\n"
"""Keeps linter and formatter from making it something else."""


def generated() -> dict[str, str]:
    """Return the text of each file, by name."""
    with tempfile.TemporaryDirectory() as out:
        outs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpclib_python")]
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outs, str(FOLDER / "podresources.proto")]
        plugins = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        subprocess.run(command, check=True, cwd=REPOSITORY, env={**os.environ, "PATH": plugins})
        return {path.name: _MARK + path.read_text() for path in sorted((out / FOLDER).iterdir())}


if __name__ == "__main__":
    for name, text in generated().items():
        (REPOSITORY / FOLDER / name).write_text(text)
