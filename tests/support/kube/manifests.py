"""Manifests and kubeconfigs as tests write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def nad(
    namespace: str, name: str, config: str | None = "", annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return a NAD; a *config* of None leaves out ``spec``."""
    manifest: dict[str, Any] = {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"namespace": namespace, "name": name, "annotations": annotations or {}},
    }
    return manifest if config is None else {**manifest, "spec": {"config": config}}


def write_kubeconfig(path: Path, cluster: dict[str, Any], user: dict[str, Any]) -> Path:
    """Write a kubeconfig with one context to *path* and return that."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
    }
    path.write_text(yaml.safe_dump(content))
    return path
