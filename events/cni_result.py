"""Read interfaces, addresses, gateways and DNS settings from the result of a plugin.

Pure and tolerant: unknown keys are ignored and ``null`` counts as absent, as in the Go types that plugins print. It
reads every version of the format (CNI specification 1.1, section 5, "Success"; 0.2.0 for ``ip4`` and ``ip6``).
"""

from __future__ import annotations

import ipaddress

import msgspec

NIL = "<nil>"
"""Go's text for a missing IP address."""

_EVERYWHERE = {"0.0.0.0": 4, "::": 6}  # noqa: S104  # routes, not listeners


class ResultError(ValueError):
    """The text is not a plugin's result."""


class Interface(msgspec.Struct, frozen=True):
    """One link that a plugin made or took over. Without *sandbox* it is on the node."""

    name: str = ""
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""


class Address(msgspec.Struct, frozen=True):
    """One address with prefix length, as printed; *interface* is an index into ``interfaces``, or None."""

    address: str
    gateway: str = ""
    interface: int | None = None

    @property
    def bare(self) -> str:
        """The address without prefix, in canonical form. Raises ResultError."""
        return canonical(self.address)


class DefaultRoute(msgspec.Struct, frozen=True):
    """A default route: its IP version, and its gateway in canonical form or ``NIL``."""

    family: int
    gateway: str


class Dns(msgspec.Struct, frozen=True, omit_defaults=True):
    """Resolver settings."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(msgspec.Struct, frozen=True):
    """A result in the form of the newest version."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Address, ...] = ()
    default_routes: tuple[DefaultRoute, ...] = ()
    dns: Dns = Dns()

    @property
    def default_gateways(self) -> tuple[str, ...]:
        """The gateways of the default routes, ``NIL`` for one that has none."""
        return tuple(route.gateway for route in self.default_routes)


class _Interface(msgspec.Struct):
    name: str | None = None
    mac: str | None = None
    mtu: int | None = None
    sandbox: str | None = None


class _Ip(msgspec.Struct):
    address: str
    gateway: str | None = None
    interface: int | None = None


class _Route(msgspec.Struct):
    dst: str | None = None
    gw: str | None = None


class _Family(msgspec.Struct):
    ip: str
    gateway: str | None = None
    routes: list[_Route] | None = None


class _Dns(msgspec.Struct):
    nameservers: list[str] | None = None
    domain: str | None = None
    search: list[str] | None = None
    options: list[str] | None = None


class _Wire(msgspec.Struct, rename={"cni_version": "cniVersion"}):
    cni_version: str | None = None
    interfaces: list[_Interface] | None = None
    ips: list[_Ip] | None = None
    routes: list[_Route] | None = None
    dns: _Dns | None = None
    ip4: _Family | None = None
    ip6: _Family | None = None


_decoder = msgspec.json.Decoder(_Wire)


def read(text: str, cni_version: str) -> Result:
    """Return the result in *text*. *cni_version* is that of the configuration, for a plugin that printed no version.

    Raises ResultError.
    """
    try:
        wire = _decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ResultError(f"not the result of a plugin: {error}") from error
    version = _version(wire.cni_version or cni_version or "0.1.0")
    dns = wire.dns or _Dns()
    families = [family for family in (wire.ip4, wire.ip6) if family is not None] if version < (0, 3) else []
    if version < (0, 3):
        interfaces, routes = (), [route for family in families for route in family.routes or ()]
        ips = tuple(Address(family.ip, family.gateway or "") for family in families)
    else:
        interfaces = tuple(
            Interface(i.name or "", i.mac or "", (i.mtu or 0) if version >= (1, 1) else 0, i.sandbox or "")
            for i in wire.interfaces or ()
        )
        ips = tuple(Address(ip.address, ip.gateway or "", ip.interface) for ip in wire.ips or ())
        routes = wire.routes or []
    return Result(
        interfaces=interfaces,
        ips=ips,
        default_routes=tuple(
            DefaultRoute(_EVERYWHERE[to], canonical(r.gw) if r.gw else NIL)
            for r in routes
            if (to := _bare(r)) in _EVERYWHERE
        ),
        dns=Dns(tuple(dns.nameservers or ()), dns.domain or "", tuple(dns.search or ()), tuple(dns.options or ())),
    )


def canonical(text: str) -> str:
    """Return the IP address in *text*, with or without prefix length, as Go prints it. Raises ResultError."""
    try:
        ip = ipaddress.ip_interface(text).ip
    except ValueError as error:
        raise ResultError(f"{text!r} is not an IP address") from error
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip)


def _bare(route: _Route) -> str:
    # Without the prefix length: Multus writes the annotation so.
    return canonical(route.dst) if route.dst else "0.0.0.0"  # noqa: S104  # a route, not a listener


def _version(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("."))
    except ValueError as error:
        raise ResultError(f"{text!r} is not a CNI version") from error
