"""kubectl as people use it, against a test's API server."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.kube.server import ADMIN, KubeServer

_PATIENCE = 60.0


class Kubectl:
    """The administrator's kubectl, with its files in *folder*."""

    def __init__(self, kube: KubeServer, folder: Path) -> None:
        folder.mkdir()
        kubeconfig = kube.kubeconfig(folder / "config", token=ADMIN)
        self._command = [_binary(), "--kubeconfig", str(kubeconfig), "--cache-dir", str(folder / "cache")]

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Run it with *arguments*, which must succeed; return what it prints."""
        command = [*self._command, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        assert not done.returncode, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout


def _binary() -> str:
    beside = Path(os.environ.get("KUBEBUILDER_ASSETS") or "/usr/local/kubebuilder/bin") / "kubectl"
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl is missing: set KUBEBUILDER_ASSETS to a folder that has it, for example by setup-envtest")
    return found
