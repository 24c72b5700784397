"""Decode the configuration of a native plugin. Pure.

An unknown key may be an option of a newer reference plugin, and so may a value of another type. In both cases the
worker executes the reference plugin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from events.process.decoding import convert
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.spec.results import DNS

_MAC = re.compile(r"[0-9A-Fa-f]{2}(?P<mark>[:-])(?:[0-9A-Fa-f]{2}(?P=mark)){4}[0-9A-Fa-f]{2}")

U32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
"""A number that fits the messages to the kernel."""


class PluginConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The keys that every plugin's configuration may have (CNI specification 1.1, section 1)."""

    type: str
    cni_version: str = ""
    cni_versions: tuple[str, ...] = ()
    name: str = ""
    disable_check: bool = False
    disable_gc: bool = msgspec.field(default=False, name="disableGC")
    capabilities: dict[str, bool] = {}
    ipam: dict[str, Any] = {}
    dns: DNS = DNS()
    args: dict[str, Any] = {}
    runtime_config: dict[str, Any] = {}
    prev_result: Any = None

    @property
    def has_ipam(self) -> bool:
        """Whether an IPAM plugin takes part."""
        return bool(self.ipam.get("type"))


C = TypeVar("C", bound=PluginConfig)


def decode_config(call: Call, kind: type[C]) -> C:
    """Return the configuration of *call*. Raises NativeError."""
    try:
        return convert(call.config, kind)
    except msgspec.ValidationError as error:
        raise NativeError(f"the configuration of network {call.network} can't be used: {error}") from None


def decode_options(config: Mapping[str, Any], kind: type[C]) -> C | str:
    """Return the configuration, or the first part of it that only the reference plugin supports."""
    try:
        return convert(config, kind)
    except msgspec.ValidationError as error:
        return str(error)


def parse_mac(text: str, ifname: str) -> str:
    """Return the MAC address in *text*, with colons; empty if *text* is. Raises NativeError."""
    if text and not _MAC.fullmatch(text):
        raise NativeError(f"{text!r} is not a MAC address for interface {ifname}: write it like 02:00:5e:10:00:01")
    return text.replace("-", ":").lower()


def requested_mac(call: Call, config: PluginConfig, *stated: str) -> str:
    """Return the requested MAC address of the interface, empty for any. The runtime's takes precedence.

    *stated* are the addresses in the plugin's own options, the strongest last. Raises NativeError.
    """
    asked = [call.args.get("MAC", ""), *stated, config.runtime_config.get("mac", "")]
    chosen = next((each for each in reversed(asked) if each), "")
    if not isinstance(chosen, str):
        raise NativeError(f"{chosen!r} is not a MAC address for interface {call.ifname}: it must be a string")
    return parse_mac(chosen, call.ifname)
