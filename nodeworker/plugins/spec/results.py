"""Plugin results in every version of the specification: plugin and runtime may use different ones.

Pure. A result has the shape of version 1.1.0; encoding for an older version omits what that can't express.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import msgspec

from events.process import decoding
from nodeworker.plugins.spec import addresses, versions
from nodeworker.plugins.spec.names import raw_members

_ADDRESS_PER_FAMILY = frozenset({"0.1.0", "0.2.0"})
"""Versions whose result holds at most one address per family, and no interfaces."""
_CACHED = 64
"""Decoded results that are kept: those of the ADDs in progress."""


class ResultError(ValueError):
    """A result that is not one, or that a version can't express; its text is one sentence."""


class Interface(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """An interface that the plugin made, in the container (with ``sandbox``) or on the node."""

    name: str = ""
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = msgspec.field(default="", name="pciID")


class IP(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An address that the plugin assigned."""

    interface: int | None = None
    """Index into the result's interfaces."""
    address: str
    """With its prefix length."""
    gateway: str = ""


class Route(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A route that the plugin made."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


class DNS(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The resolver configuration that the plugin suggests."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


_NO_DNS = DNS()
"""One for all shapes: a default is left out of the text by its identity."""


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A result (CNI specification 1.1, section 5, "ADD Success")."""

    cni_version: str = msgspec.field(name="cniVersion")
    """The version it was decoded from."""
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = _NO_DNS

    def ips_of(self, ifname: str) -> list[IP]:
        """Return the addresses of the container's interface *ifname*; one that names no interface is among them."""
        return [ip for ip in self.ips if self._is_of(ip.interface, ifname)]

    def _is_of(self, index: int | None, ifname: str) -> bool:
        if index is None or not 0 <= index < len(self.interfaces):
            return True
        owner = self.interfaces[index]
        return bool(owner.sandbox) and owner.name == ifname


class _FamilyRoute(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    dst: str
    gw: str = ""


class _FamilyIP(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    ip: str
    gateway: str = ""
    routes: tuple[_FamilyRoute, ...] = ()


class _FamilyResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The shape of 0.1.0 and 0.2.0."""

    cni_version: str = msgspec.field(name="cniVersion")
    ip4: _FamilyIP | None = None
    ip6: _FamilyIP | None = None
    dns: DNS = _NO_DNS


class _StatedIP(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An address in the shape of 0.3.0 to 0.4.0, which state the family."""

    version: str
    interface: int | None = None
    address: str
    gateway: str = ""


class _StatedResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    cni_version: str = msgspec.field(name="cniVersion")
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[_StatedIP, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = _NO_DNS


@functools.lru_cache(_CACHED)
def decode(text: str, fallback_version: str) -> Result:
    """Return the result in *text*, which is in *fallback_version* unless it says otherwise. Raises ResultError.

    One ADD needs the same results several times, so the last ones are cached.
    """
    return _decoded(_object(text), fallback_version)


def encode(result: Result, version: str) -> str:
    """Return *result* as JSON text of *version*, without what that version can't express.

    Raises ResultError for a version that is not supported, and for 0.1.0 and 0.2.0 when there is no address: they know
    no other kind of result.
    """
    if version not in versions.SUPPORTED:
        raise ResultError(f"CNI version {version!r} is not supported")
    if version in _ADDRESS_PER_FAMILY:
        shaped = _to_families(result, version)
    elif versions.at_least(version, "1.0.0"):
        # 1.0.0 names fewer keys than 1.1.0 and forbids none: they are kept, as the Go library does.
        shaped = msgspec.structs.replace(result, cni_version=version)
    else:
        shaped = _to_stated(result, version)
    return msgspec.json.encode(shaped).decode()


def convert(text: str, source_version: str, version: str) -> str:
    """Return *text* in *version*: untouched when it is in that version already.

    *source_version* is the version of a text that does not state one. Raises ResultError.
    """
    if _version(_object(text), source_version) == version:
        return text
    return encode(decode(text, source_version), version)


def stated(text: str, version: str) -> str:
    """Return *text*, with *version* as its ``cniVersion`` if it states none. Raises ResultError."""
    return _stated(text, _object(text), version)


def _stated(text: str, raw: dict[str, Any], version: str) -> str:
    if raw.get("cniVersion"):
        return text
    return msgspec.json.encode({**raw_members(text), "cniVersion": version}).decode()


def accepted(text: str, version: str) -> tuple[str, str]:
    """Return the result that a plugin printed: as it was, but with a ``cniVersion`` in any case, and in *version*.

    It is in *version* unless it says otherwise. Raises ResultError.
    """
    raw = _object(text)
    printed = _stated(text, raw, version)
    result = _decoded(raw, version)
    return printed, printed if result.cni_version == version else encode(result, version)


def _decoded(raw: dict[str, Any], fallback_version: str) -> Result:
    raw["cniVersion"] = version = _version(raw, fallback_version)
    try:
        if version in _ADDRESS_PER_FAMILY:
            result = _from_families(decoding.convert(raw, _FamilyResult))
        else:
            result = decoding.convert(raw, Result)
    except msgspec.ValidationError as error:
        raise ResultError(f"not a result of CNI version {version}: {error}") from None
    for index, ip in enumerate(result.ips):
        _family(ip.address, f"ips[{index}]")
    for index, route in enumerate(result.routes):
        _family(route.dst, f"routes[{index}]")
    return result


def _object(text: str) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ResultError(f"the result is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ResultError("the result is not a JSON object")
    return cast("dict[str, Any]", _without_nulls(raw))


def _without_nulls(value: Any) -> Any:
    """Plugins that are not written in Go print null for what they do not set."""
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {key: _without_nulls(member) for key, member in items if member is not None}
    if isinstance(value, list):
        return [_without_nulls(member) for member in cast("list[Any]", value)]
    return value


def _version(raw: dict[str, Any], fallback_version: str) -> str:
    version = raw.get("cniVersion") or fallback_version
    if version not in versions.SUPPORTED:
        raise ResultError(f"the result is in CNI version {version!r}, which is not supported")
    return version


def _family(address: str, place: str = "an address") -> str:
    try:
        return str(addresses.family(address))
    except ValueError as error:
        raise ResultError(f"{place} of the result: {error}") from None


def _from_families(families: _FamilyResult) -> Result:
    present = [each for each in (families.ip4, families.ip6) if each is not None]
    return Result(
        cni_version=families.cni_version,
        ips=tuple(IP(address=each.ip, gateway=each.gateway) for each in present),
        routes=tuple(Route(dst=route.dst, gw=route.gw) for each in present for route in each.routes),
        dns=families.dns,
    )


def _to_families(result: Result, version: str) -> _FamilyResult:
    families: dict[str, _FamilyIP] = {}
    for ip in result.ips:
        family = _family(ip.address)
        if family not in families:
            routes = tuple(
                _FamilyRoute(dst=each.dst, gw=each.gw) for each in result.routes if _family(each.dst) == family
            )
            families[family] = _FamilyIP(ip=ip.address, gateway=ip.gateway, routes=routes)
    if not families:
        raise ResultError(
            f"a result without an address can't be expressed in CNI version {version}: use 0.3.0 or newer"
        )
    return _FamilyResult(cni_version=version, ip4=families.get("4"), ip6=families.get("6"), dns=result.dns)


def _to_stated(result: Result, version: str) -> _StatedResult:
    return _StatedResult(
        cni_version=version,
        interfaces=tuple(Interface(name=each.name, mac=each.mac, sandbox=each.sandbox) for each in result.interfaces),
        ips=tuple(
            _StatedIP(version=_family(ip.address), interface=ip.interface, address=ip.address, gateway=ip.gateway)
            for ip in result.ips
        ),
        routes=tuple(Route(dst=route.dst, gw=route.gw) for route in result.routes),
        dns=result.dns,
    )
