"""What both IPAM plugins read the same way out of a network configuration.

As with the other native plugins, what is not known here is a reason to execute the binary, never to guess. The binaries
also take keys in another case, which no one should rely on and somebody may: that is such a reason too.

Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar, cast

import msgspec

from events.process.decoding import convert
from nodeworker.plugins.native.api import Call
from nodeworker.plugins.native.ipam.addresses import address, with_prefix
from nodeworker.plugins.spec import versions
from nodeworker.plugins.spec.results import Route


class RouteConfig(Route, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A route as it is configured."""


class _CniArgs(msgspec.Struct, frozen=True):
    ips: tuple[str, ...] = ()


class _Args(msgspec.Struct, frozen=True):
    cni: _CniArgs = _CniArgs()


class RuntimeConfig(msgspec.Struct, frozen=True):
    """What the runtime says through capabilities."""

    ips: tuple[str, ...] = ()


class NetConf(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The part of the main plugin's configuration that is meant for its IPAM plugin; a plugin adds ``ipam``."""

    name: str = ""
    cni_version: str = ""
    args: _Args = _Args()
    runtime_config: RuntimeConfig = RuntimeConfig()


C = TypeVar("C", bound=NetConf)

_PATHS = {
    (): ("name", "cniVersion", "ipam", "args", "runtimeConfig"),
    ("args",): ("cni",),
    ("args", "cni"): ("ips",),
    ("runtimeConfig",): ("ips", "ipRanges"),
}
"""Where keys of others stand beside those that matter here."""


def load(config: Mapping[str, Any], kind: type[C]) -> C:
    """Return the configuration. Raises ValueError."""
    try:
        return convert(_without_nulls(config), kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"the configuration is not understood: {error}") from None


def misfit(config: Mapping[str, Any], kind: type[C]) -> C | str:
    """Return the configuration, or what in it only the reference plugin understands."""
    if stranger := _in_another_case(config):
        return f"key {stranger!r} is written in another way"
    try:
        return load(config, kind)
    except ValueError as error:
        return str(error)


def cni_args(call: Call, known: Collection[str]) -> Mapping[str, str]:
    """Return CNI_ARGS. Raises ValueError for one that is not among *known* unless it says to ignore those."""
    ignore = call.args.get("IgnoreUnknown", "false").lower()
    if ignore not in {"0", "1", "false", "true"}:
        raise ValueError(f"IgnoreUnknown in CNI_ARGS is {ignore!r}: use 1 or 0")
    strangers = sorted(set(call.args) - {*known, "IgnoreUnknown"})
    if strangers and ignore in {"0", "false"}:
        raise ValueError(f"CNI_ARGS holds {', '.join(strangers)}, and not IgnoreUnknown=1")
    return call.args


def routes(configured: Iterable[RouteConfig]) -> tuple[Route, ...]:
    """Return the routes for the result. Raises ValueError."""
    return tuple(
        Route(
            dst=str(with_prefix(each.dst)),
            gw=str(address(each.gw)) if each.gw else "",
            mtu=each.mtu,
            advmss=each.advmss,
            priority=each.priority,
            table=each.table,
            scope=each.scope,
        )
        for each in configured
    )


def refuse_many(version: str, families: Iterable[int]) -> None:
    """Raise ValueError if a result in *version* can't hold addresses of all *families*."""
    found = list(families)
    if len(found) > len(set(found)) and not versions.at_least(version, "0.3.0"):
        raise ValueError(
            f"CNI version {version or versions.UNSTATED} knows one address per family: use 0.3.0 or newer for more"
        )


def _in_another_case(config: Mapping[str, Any]) -> str:
    for path, names in _PATHS.items():
        place: Any = config
        for step in path:
            place = cast("Mapping[str, Any]", place).get(step) if isinstance(place, Mapping) else None
        if isinstance(place, Mapping):
            folded = {name.casefold() for name in names}
            for key in cast("Mapping[str, Any]", place):
                if key not in names and key.casefold() in folded:
                    return key
    return ""


def _without_nulls(value: Any) -> Any:
    """Null is as good as nothing, but not in a list."""
    if isinstance(value, Mapping):
        members = cast("Mapping[str, Any]", value).items()
        return {key: _without_nulls(member) for key, member in members if member is not None}
    if isinstance(value, list):
        return [_without_nulls(member) for member in cast("list[Any]", value)]
    return value
