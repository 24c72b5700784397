"""The parts of a network configuration that both IPAM plugins share.

As with the other native plugins, the worker executes the binary for a configuration with unknown keys. It also does
so for keys in another case, which the binaries accept.

Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar, cast

import msgspec

from events.process.decoding import convert
from nodeworker.plugins.native.api import Call
from nodeworker.plugins.spec import versions
from nodeworker.plugins.spec.addresses import address, with_prefix
from nodeworker.plugins.spec.names import each_at
from nodeworker.plugins.spec.results import Route


class RouteConfig(Route, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A configured route."""


class _CniArgs(msgspec.Struct, frozen=True):
    ips: tuple[str, ...] = ()


class _Args(msgspec.Struct, frozen=True):
    cni: _CniArgs = _CniArgs()


class RuntimeConfig(msgspec.Struct, frozen=True):
    """The capability arguments (``runtimeConfig``) that IPAM plugins read."""

    ips: tuple[str, ...] = ()


class IpamNetConf(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The main plugin's keys that an IPAM plugin reads; a subclass adds ``ipam``."""

    name: str = ""
    cni_version: str = ""
    args: _Args = _Args()
    runtime_config: RuntimeConfig = RuntimeConfig()


C = TypeVar("C", bound=IpamNetConf)

_PATHS = {
    (): ("name", "cniVersion", "ipam", "args", "runtimeConfig"),
    ("args",): ("cni",),
    ("args", "cni"): ("ips",),
    ("runtimeConfig",): ("ips", "ipRanges"),
}
"""The keys read here, by the path of their object, which may have other keys too."""


def decode(config: Mapping[str, Any], kind: type[C]) -> C:
    """Return the configuration. Raises ValueError."""
    try:
        return convert(_without_nulls(config), kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"the configuration is not understood: {error}") from None


def misfit(config: Mapping[str, Any], kind: type[C]) -> C | str:
    """Return the configuration, or the first part of it that only the reference plugin supports."""
    if unknown := _in_another_case(config):
        return f"key {unknown!r} differs in case"
    try:
        return decode(config, kind)
    except ValueError as error:
        return str(error)


def cni_args(call: Call, known: Collection[str]) -> Mapping[str, str]:
    """Return CNI_ARGS. Raises ValueError for an argument not in *known*, unless ``IgnoreUnknown`` is true."""
    ignore = call.args.get("IgnoreUnknown", "false").lower()
    if ignore not in {"0", "1", "false", "true"}:
        raise ValueError(f"IgnoreUnknown in CNI_ARGS is {ignore!r}: use 1 or 0")
    unknown = sorted(set(call.args) - {*known, "IgnoreUnknown"})
    if unknown and ignore in {"0", "false"}:
        raise ValueError(f"CNI_ARGS has unknown {', '.join(unknown)}: remove them or set IgnoreUnknown=1")
    return call.args


def routes(configured: Iterable[RouteConfig]) -> tuple[Route, ...]:
    """Return the routes for the result. Raises ValueError."""
    return each_at("routes", configured, _route)


def _route(config: RouteConfig) -> Route:
    return Route(
        dst=str(with_prefix(config.dst)),
        gw=str(address(config.gw)) if config.gw else "",
        mtu=config.mtu,
        advmss=config.advmss,
        priority=config.priority,
        table=config.table,
        scope=config.scope,
    )


def refuse_many(version: str, families: Iterable[int]) -> None:
    """Raise ValueError if a result in *version* can't have the addresses: before 0.3.0, one per family."""
    found = list(families)
    if len(found) > len(set(found)) and not versions.at_least(version, "0.3.0"):
        raise ValueError(
            f"CNI version {version or versions.UNSTATED} allows one address per family: use 0.3.0 or newer for more"
        )


def _in_another_case(config: Mapping[str, Any]) -> str:
    for path, names in _PATHS.items():
        found: Any = config
        for step in path:
            found = cast("Mapping[str, Any]", found).get(step) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            folded = {name.casefold() for name in names}
            for key in cast("Mapping[str, Any]", found):
                if key not in names and key.casefold() in folded:
                    return key
    return ""


def _without_nulls(value: Any) -> Any:
    """Return *value* without members that are null: null means absent, except in a list."""
    if isinstance(value, Mapping):
        members = cast("Mapping[str, Any]", value).items()
        return {key: _without_nulls(member) for key, member in members if member is not None}
    if isinstance(value, list):
        return [_without_nulls(member) for member in cast("list[Any]", value)]
    return value
