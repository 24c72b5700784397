"""The Kubernetes objects that planning needs, with the fields that it needs."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

CONFIG_SOURCE = "kubernetes.io/config.source"
"""Annotation of the kubelet: any value but ``api`` marks a static pod."""

RESOURCE_NAME = "k8s.v1.cni.cncf.io/resourceName"
"""Annotation of a NAD whose attachments each use a device of that resource."""


class PodObject(msgspec.Struct, frozen=True):
    """A pod of the cluster."""

    namespace: str
    name: str
    uid: str = ""
    annotations: dict[str, str] = {}
    static: bool = False
    """Created by the kubelet from a file: the runtime and the API know it by different UIDs."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Nad(msgspec.Struct, frozen=True):
    """A network definition: a NetworkAttachmentDefinition, or a configuration file of the node."""

    namespace: str
    """Empty: from a file of the node."""
    name: str
    config: str = ""
    """Empty: the node has it in a file, found by name (NPWG specification 1.3, section 3)."""
    annotations: dict[str, str] = {}


class NetworkRef(NamedTuple):
    """The reference to a network definition."""

    namespace: str
    name: str
    on_disk: bool = False
    """Whether it is from the node's own configuration: without a NAD, it is the name or path of a file."""
