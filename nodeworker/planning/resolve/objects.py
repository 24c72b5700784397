"""The two kinds of Kubernetes objects that planning needs, reduced to what it needs of them."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

CONFIG_SOURCE = "kubernetes.io/config.source"
"""Annotation of the kubelet's: what is neither absent nor ``api`` makes a static pod."""

RESOURCE_NAME = "k8s.v1.cni.cncf.io/resourceName"
"""Annotation of a NAD that draws a device for each use."""


class PodObject(msgspec.Struct, frozen=True):
    """A pod as the cluster has it."""

    namespace: str
    name: str
    uid: str = ""
    annotations: dict[str, str] = {}
    static: bool = False
    """Made by the kubelet from a file: the runtime and the API know it by different UIDs."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Nad(msgspec.Struct, frozen=True):
    """A network definition: a NetworkAttachmentDefinition, or a configuration found on the node's disk."""

    namespace: str
    """Empty: found on disk."""
    name: str
    config: str = ""
    """Empty: to be found on disk by its name (NPWG specification 1.3, section 3)."""
    annotations: dict[str, str] = {}


class NetworkRef(NamedTuple):
    """What a network definition is looked up by."""

    namespace: str
    name: str
    on_disk: bool = False
    """True for a network of the node's own configuration: without NAD, the name or path of a file will do."""
