"""The Kubernetes objects that planning needs, with the fields that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import msgspec

CONFIG_SOURCE = "kubernetes.io/config.source"
"""Annotation of the kubelet: any value but ``api`` marks a static pod."""

RESOURCE_NAME = "k8s.v1.cni.cncf.io/resourceName"
"""Annotation of a NAD whose attachments each use a device of that resource."""


_KINDS: tuple[tuple[type, str], ...] = (
    (Mapping, "a mapping"),
    (list, "a list"),
    (str, "text"),
    (bool, "a truth value"),
)


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
    problem: str = ""
    """Why the definition has no ``config``, if not because it leaves it out."""

    @classmethod
    def of(cls, namespace: str, name: str, spec: object, annotations: dict[str, str]) -> Nad:
        """Return the definition with the decoded *spec*, which may be anything if the cluster has no schema for it."""
        inside = isinstance(spec, Mapping)
        config = cast("Mapping[str, Any]", spec).get("config") if inside else spec
        if config is None or (inside and isinstance(config, str)):
            return cls(namespace, name, config or "", annotations)
        kind = next((kind for of, kind in _KINDS if isinstance(config, of)), "a number")
        problem = (
            f"its spec{'.config' if inside else ''} is {kind}; write the configuration as JSON text in spec.config"
        )
        return cls(namespace, name, "", annotations, problem)


class NetworkRef(NamedTuple):
    """The reference to a network definition."""

    namespace: str
    name: str
    on_disk: bool = False
    """Whether it is from the node's own configuration: without a NAD, it is the name or path of a file."""
