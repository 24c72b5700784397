"""Decode the Kubernetes objects that the worker watches, with the fields that planning needs.

An API server's pod is 4 to 15 KB of JSON, and a node has hundreds that change all the time. Only the needed fields are
decoded: a model of the whole object would use seventy times as much memory on each node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from nodeworker.planning.resolve.annotation import DEFAULT_NETWORK, NETWORKS
from nodeworker.planning.resolve.objects import CONFIG_SOURCE, RESOURCE_NAME, Nad, PodObject

UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What decoding may raise if the text is not JSON, or not the expected object."""

ObjectT = TypeVar("ObjectT", Nad, PodObject)

_JSON = "application/json"
_METADATA = "application/json;as={};g=meta.k8s.io;v=v1,application/json"
"""Requests only metadata, if the server supports that (Kubernetes API concepts)."""


class Key(NamedTuple):
    """Identifies an object among those of its kind."""

    namespace: str
    name: str


class Kind(NamedTuple, Generic[ObjectT]):
    """One kind of objects: its path at the API server, and its decoder."""

    resource: str
    """Its name in roles."""
    group: str
    """The path of its API group and version."""
    decode: Callable[[bytes | msgspec.Raw], ObjectT]
    """Raises one of ``UNREADABLE``."""
    type: type[ObjectT]
    accept: str = _JSON
    accept_list: str = _JSON

    def collection(self) -> str:
        """Return the path of all objects of this kind."""
        return f"{self.group}/{self.resource}"

    def object(self, key: Key) -> str:
        """Return the path of one object."""
        return f"{self.group}/namespaces/{quote(key.namespace, safe='')}/{self.resource}/{quote(key.name, safe='')}"


def key_of(cached: Nad | PodObject) -> Key:
    """Return the key of *cached*."""
    return Key(cached.namespace, cached.name)


class Meta(msgspec.Struct):
    """The metadata that every kind has."""

    name: str = ""
    namespace: str = ""
    resource_version: str = msgspec.field(default="", name="resourceVersion")


class HasMeta(msgspec.Struct):
    """An object of any kind, with its metadata only."""

    metadata: Meta


class _PodAnnotations(msgspec.Struct):
    networks: str | None = msgspec.field(default=None, name=NETWORKS)
    default_network: str | None = msgspec.field(default=None, name=DEFAULT_NETWORK)
    config_source: str = msgspec.field(default="api", name=CONFIG_SOURCE)


class _PodMeta(msgspec.Struct):
    name: str
    namespace: str
    uid: str
    annotations: _PodAnnotations | None = None


class _Pod(msgspec.Struct):
    metadata: _PodMeta


class _NadAnnotations(msgspec.Struct):
    resource_name: str | None = msgspec.field(default=None, name=RESOURCE_NAME)


class _NadMeta(msgspec.Struct):
    name: str
    namespace: str
    annotations: _NadAnnotations | None = None


class _Nad(msgspec.Struct):
    metadata: _NadMeta
    spec: Any = None


_POD = msgspec.json.Decoder(_Pod)
_NAD = msgspec.json.Decoder(_Nad)


def _pod(text: bytes | msgspec.Raw) -> PodObject:
    about = _POD.decode(text).metadata
    found = about.annotations or _PodAnnotations()
    annotations = _present({NETWORKS: found.networks, DEFAULT_NETWORK: found.default_network})
    return PodObject(about.namespace, about.name, about.uid, annotations, static=found.config_source != "api")


def _nad(text: bytes | msgspec.Raw) -> Nad:
    nad = _NAD.decode(text)
    about = nad.metadata
    resource_name = about.annotations.resource_name if about.annotations else None
    return Nad.of(about.namespace, about.name, nad.spec, _present({RESOURCE_NAME: resource_name}))


def _present(annotations: dict[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in annotations.items() if value is not None}


PODS = Kind(
    resource="pods",
    group="/api/v1",
    decode=_pod,
    type=PodObject,
    accept=_METADATA.format("PartialObjectMetadata"),
    accept_list=_METADATA.format("PartialObjectMetadataList"),
)
NADS = Kind(
    resource="network-attachment-definitions",
    group="/apis/k8s.cni.cncf.io/v1",
    decode=_nad,
    type=Nad,
)
