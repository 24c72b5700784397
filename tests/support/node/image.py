"""An OCI image for the process that keeps a pod's sandbox alive."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import tarfile
from pathlib import Path
from typing import Any


def write_image(archive: Path, image: str) -> None:
    """Write *image*, one program that sleeps, in the OCI layout. No registry is needed."""
    busybox = shutil.which("busybox")
    assert busybox
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        files.add(os.path.realpath(busybox), "busybox")
    blobs = {}

    def blob(content: bytes, kind: str, **more: Any) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        kind = f"application/vnd.oci.image.{kind}"
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content), **more}

    rootfs = blob(layer.getvalue(), "layer.v1.tar")
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": ["/busybox", "sleep", "1000000"]},
        "rootfs": {"type": "layers", "diff_ids": [rootfs["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": [rootfs],
    }
    named = {"annotations": {"io.containerd.image.name": image}}
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), "manifest.v1+json", **named)]}
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode(), **blobs}
    with tarfile.open(archive, "w") as written:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            written.addfile(entry, io.BytesIO(content))
