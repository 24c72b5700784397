"""Decode the files that Multus and libcni write on a node: the only module that knows their formats.

Pure. Both programs write in place and without a sync, so a file may be torn anywhere: a file that can't be decoded
whole is an error. Keys that Plumbline does not use are ignored.
"""

from __future__ import annotations

from typing import Any

import msgspec

from events.schema import ContainerId, IfName
from nodeworker.errors import usable_container_id
from nodeworker.plugins.spec.names import ifname_problem, shown

_CACHE_KIND = "cniCacheV1"


class RecordError(ValueError):
    """A file has not the expected content; the text is the end of a sentence that begins with its path."""


class Delegate(msgspec.Struct, frozen=True, kw_only=True):
    """One network of a sandbox in Multus' scratch file, in the order of attachment."""

    name: str = msgspec.field(default="", name="Name")
    """``namespace/name`` of the NetworkAttachmentDefinition, else the name of the CNI configuration."""
    ifname: str = msgspec.field(default="", name="ifnameRequest")
    mac: str = msgspec.field(default="", name="macRequest")
    infiniband_guid: str = msgspec.field(default="", name="infinibandGUIDRequest")
    ips: tuple[str, ...] = msgspec.field(default=(), name="ipRequest")
    default_route: tuple[str, ...] | None = msgspec.field(default=None, name="default-route")
    device: str = msgspec.field(default="", name="deviceID")
    resource: str = msgspec.field(default="", name="resourceName")
    config_bytes: bytes = msgspec.field(default=b"", name="Bytes")
    """The CNI configuration, single or list, with Multus' additions."""

    @property
    def config(self) -> str:
        """The CNI configuration as text."""
        return self.config_bytes.decode()


class Scratch(msgspec.Struct, frozen=True, kw_only=True):
    """Multus' scratch file: the planned attachments of a sandbox. It stays until DEL, or for ever."""

    path: str
    delegates: tuple[Delegate, ...]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A file of libcni's cache: the arguments and the result of one successful ADD."""

    path: str
    container_id: ContainerId
    ifname: IfName
    network: str
    """``name`` of the CNI configuration."""
    config: str
    netns: str
    args: tuple[tuple[str, str], ...]
    """CNI_ARGS."""
    capability_args: dict[str, Any]
    result: str


class _CacheFile(msgspec.Struct, frozen=True, rename="camel"):
    kind: str
    container_id: str
    config: bytes
    if_name: str
    network_name: str
    netns: str = ""
    cni_args: tuple[tuple[str, str], ...] | None = None
    capability_args: dict[str, Any] | None = None
    result: msgspec.Raw = msgspec.Raw(b"{}")


_scratch = msgspec.json.Decoder(tuple[Delegate, ...] | None)
_cache_file = msgspec.json.Decoder(_CacheFile)


def read_scratch(path: str, text: bytes) -> Scratch:
    """Return the decoded scratch file at *path* with the content *text*. Raises RecordError."""
    try:
        delegates = _scratch.decode(text)
        for delegate in delegates or ():
            delegate.config_bytes.decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(_torn(text, error)) from error
    if not delegates:
        raise RecordError("names no network")
    if problem := next((p for each in delegates if each.ifname and (p := ifname_problem(each.ifname))), ""):
        raise RecordError(f"requests an interface whose name {problem}")
    return Scratch(path=path, delegates=delegates)


def read_entry(path: str, name: str, text: bytes) -> Entry:
    """Return the decoded entry of libcni's cache at *path*, with *name* and the content *text*. Raises RecordError."""
    try:
        file = _cache_file.decode(text)
        config, result = file.config.decode(), bytes(file.result).decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(_torn(text, error)) from error
    if file.kind != _CACHE_KIND:
        raise RecordError(f"is of kind {shown(file.kind)}, not {_CACHE_KIND}")
    if not usable_container_id(file.container_id) or ifname_problem(file.if_name):
        raise RecordError("has no valid container ID or interface name")
    if name != f"{file.network_name}-{file.container_id}-{file.if_name}":
        raise RecordError("describes an attachment that differs from its name")
    return Entry(
        path=path,
        container_id=ContainerId(file.container_id),
        ifname=IfName(file.if_name),
        network=file.network_name,
        config=config,
        netns=file.netns,
        args=file.cni_args or (),
        capability_args=file.capability_args or {},
        result=result,
    )


def _torn(text: bytes, error: Exception) -> str:
    return f"can't be read ({error})" if text else "is empty"
