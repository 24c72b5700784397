"""Parse a pod's network annotations, in both forms of the NPWG specification (1.3, section 4), and check every field.

Multus accepts more and fails late, or attaches something else than requested. Here an accepted selection can be
planned. An error names annotation, element and field, before any effect. As in Multus, a field that is null, empty or
zero requests nothing, the case of its name does not matter, and an unknown field is ignored.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from events.schema import ErrorClass, Phase
from nodeworker.errors import RequestFailedError, failed
from nodeworker.planning.resolve.config_keys import names_of
from nodeworker.plugins.spec import addresses
from nodeworker.plugins.spec.names import (
    at_place,
    decode_json,
    each_at,
    ifname_problem,
    is_namespace,
    is_object_name,
    raw_members,
    respelled,
    shown,
)

NETWORKS = "k8s.v1.cni.cncf.io/networks"
DEFAULT_NETWORK = "v1.multus-cni.io/default-network"
PROTOCOLS = frozenset({"tcp", "udp", "sctp"})
_PORTS = range(1, 2**16)
_RATES = range(2**64)
"""What the plugins' own type for rates and bursts holds."""


class PortMapping(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    rename={"host_port": "hostPort", "container_port": "containerPort", "host_ip": "hostIP"},
):
    """One entry of the capability ``portMappings``."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    """TCP, UDP or SCTP, in any case."""
    host_ip: str = ""


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """The capability ``bandwidth``: rates in bits per second, bursts in bits."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


class Selection(
    msgspec.Struct,
    frozen=True,
    rename={
        "ifname": "interface",
        "infiniband_guid": "infiniband-guid",
        "port_mappings": "portMappings",
        "device_id": "deviceID",
        "cni_args": "cni-args",
        "default_route": "default-route",
        "ipam_claim_reference": "ipam-claim-reference",
    },
):
    """One network that a pod requests, with its parameters; addresses are in canonical form."""

    namespace: str
    name: str
    ifname: str = ""
    ips: tuple[str, ...] = ()
    mac: str = ""
    infiniband_guid: str = ""
    port_mappings: tuple[PortMapping, ...] = ()
    bandwidth: Bandwidth | None = None
    device_id: str = ""
    cni_args: dict[str, msgspec.Raw] = {}
    """As written: only the plugins can interpret them."""
    default_route: tuple[str, ...] | None = None
    """Gateways. An empty list is a request too: keep the default route of the network."""
    ipam_claim_reference: str = ""
    """Not passed on: an implementation of IPAMClaims reads it from the pod, and others must ignore it."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


_DEPRECATED = "interfaceRequest"
_FIELDS = (*names_of(Selection), _DEPRECATED)


@functools.lru_cache(64)
def parse_networks(text: str, default_namespace: str) -> tuple[Selection, ...]:
    """Return the selections of the annotation ``k8s.v1.cni.cncf.io/networks``; none if it is blank.

    Cached, because an ADD parses the same text more than once. Raises RequestFailedError (INVALID_ANNOTATION).
    """
    return _parse(text, default_namespace, _AnnotationErrors(NETWORKS))


def parse_default_network(text: str, default_namespace: str) -> Selection:
    """Return the only selection of the annotation ``v1.multus-cni.io/default-network``.

    Raises RequestFailedError (INVALID_ANNOTATION).
    """
    errors = _AnnotationErrors(DEFAULT_NETWORK)
    selections = _parse(text, default_namespace, errors)
    if len(selections) != 1:
        raise errors.about(f"selects {len(selections)} networks instead of one")
    return selections[0]


class _AnnotationErrors:
    """Builds the errors of one annotation: all sentences begin with the annotation."""

    def __init__(self, annotation: str) -> None:
        self._annotation = annotation

    def about(self, problem: str, network: str = "") -> RequestFailedError:
        """Return the error for a problem of the whole annotation, or of the selection of *network*."""
        return failed(
            ErrorClass.INVALID_ANNOTATION,
            Phase.RESOLVE,
            f"annotation {self._annotation} {problem}; correct it and recreate the pod",
            network=network,
        )

    def at(self, index: int, name: str, problem: str, network: str = "") -> RequestFailedError:
        """Return the error for a problem of the element *index*, counted from 1, that selects *name*, if it does."""
        return self.about(f"{_element(index, name)}: {problem}", network)


_decoder = msgspec.json.Decoder(Selection)
_NOT_GIVEN = (b"null", b'""')


def _parse(text: str, default_namespace: str, errors: _AnnotationErrors) -> tuple[Selection, ...]:
    if not text.strip():
        return ()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise errors.about(f"is not Unicode text: {error.reason}") from error
    elements = _json_elements(text, errors) if any(c in text for c in '[{"') else _short_elements(text, errors)
    selections: list[Selection] = []
    for index, element in enumerate(elements, 1):
        selection: Selection | None = None
        try:
            selection = _decoder.decode(msgspec.json.encode({"namespace": default_namespace, "name": "", **element}))
            selections.append(_checked(selection))
        except ValueError as error:
            raise errors.at(index, _name(element), _problem(error), str(selection or "")) from error
    _check_together(selections, errors)
    return tuple(selections)


def _short_elements(text: str, errors: _AnnotationErrors) -> Iterator[dict[str, Any]]:
    """Yield the elements of the comma-separated form: ``[namespace/]name[@interface]``."""
    for index, item in enumerate(text.split(","), 1):
        *namespace, rest = item.split("/")
        name, *ifname = rest.split("@")
        if len(namespace) > 1 or len(ifname) > 1:
            raise errors.at(index, item.strip(), "is not of the form [namespace/]name[@interface]")
        if "." in name:
            raise errors.at(index, name.strip(), "has a dot in its name; use the JSON form for such a name")
        parts = {"namespace": "".join(namespace), "name": name, "interface": "".join(ifname)}
        yield {field: part.strip() for field, part in parts.items() if part.strip()}


def _json_elements(text: str, errors: _AnnotationErrors) -> Iterator[dict[str, Any]]:
    """Yield the elements of the JSON form, with the bytes of each field."""
    try:
        value = decode_json(text)
    except ValueError as error:
        raise errors.about(f"is not valid JSON: {error}") from error
    if not isinstance(value, list):
        raise errors.about("is JSON but not a list of network selection elements")
    for index, element in enumerate(msgspec.json.decode(text, type=list[msgspec.Raw]), 1):
        try:
            fields = respelled(raw_members(element), _FIELDS)
        except msgspec.ValidationError:
            raise errors.at(index, "", "is not a JSON object") from None
        given = {key: field for key, field in fields.items() if bytes(field) not in _NOT_GIVEN}
        if _DEPRECATED in given:
            given.setdefault("interface", given[_DEPRECATED])
        yield given


def _name(element: Mapping[str, Any]) -> str:
    """Return the name in *element*, empty if it has none or one of another type."""
    name = element.get("name", "")
    decoded = msgspec.json.decode(name) if isinstance(name, msgspec.Raw) else name
    return decoded if isinstance(decoded, str) else ""


def _element(index: int, name: str) -> str:
    return f"element {index} ({shown(name)})" if name else f"element {index}"


def _problem(error: ValueError) -> str:
    """Return the text of *error*, field first; msgspec's has the form ``Expected `str`, got `int` - at `$.mac` ``."""
    problem, _, path = str(error).partition(" - at `$.")
    return f"field {path.rstrip('`')}: {problem}" if path else problem


def _checked(selection: Selection) -> Selection:
    """Return *selection* with its addresses in canonical form. Raises ValueError, which names field and value."""
    _check_names(selection)
    if selection.ips and selection.ipam_claim_reference:
        raise ValueError("fields ips and ipam-claim-reference exclude each other")
    if selection.bandwidth is not None:
        _check_bandwidth(selection.bandwidth)
    with at_place("field mac"):
        mac = selection.mac and addresses.interface_address(selection.mac)
    with at_place("field infiniband-guid"):
        infiniband_guid = selection.infiniband_guid and addresses.guid(selection.infiniband_guid)
    return replace(
        selection,
        mac=mac,
        infiniband_guid=infiniband_guid,
        ips=each_at("field ips", selection.ips, _address),
        port_mappings=each_at("field portMappings", selection.port_mappings, _port_mapping),
        default_route=None if selection.default_route is None else _gateways(selection.default_route),
    )


def _check_names(selection: Selection) -> None:
    if not selection.name:
        raise ValueError("field name is missing")
    if not is_object_name(selection.name):
        raise ValueError(f"field name: {shown(selection.name)} is not a DNS-1123 name")
    if not is_namespace(selection.namespace):
        raise ValueError(f"field namespace: {shown(selection.namespace)} is not a DNS-1123 label")
    if selection.ifname and (problem := ifname_problem(selection.ifname)):
        raise ValueError(f"field interface: {shown(selection.ifname)} {problem}")


def _address(text: str) -> str:
    return str(addresses.with_prefix(text) if "/" in text else addresses.address(text))


def _gateways(texts: Sequence[str]) -> tuple[str, ...]:
    gateways = each_at("field default-route", texts, _gateway)
    for version, mark in ((4, "."), (6, ":")):
        same = [gateway for gateway in gateways if mark in gateway]
        if len(same) > 1:
            count = f"{len(same)} IPv{version} gateways ({', '.join(same)})"
            raise ValueError(f"field default-route: holds {count}; a family has one default route")
    return gateways


def _gateway(text: str) -> str:
    gateway = addresses.address(text)
    if gateway.is_unspecified or gateway.is_multicast or gateway.is_loopback:
        raise ValueError(f"holds {shown(text)}, which can't be a router's address; correct it")
    return str(gateway)


def _port_mapping(mapping: PortMapping) -> PortMapping:
    for field, port in (("hostPort", mapping.host_port), ("containerPort", mapping.container_port)):
        if port not in _PORTS:
            raise ValueError(f"{field} {shown(str(port))} is not between {_PORTS.start} and {_PORTS.stop - 1}")
    if mapping.protocol.lower() not in PROTOCOLS:
        raise ValueError(f"protocol {shown(mapping.protocol)} is none of TCP, UDP and SCTP")
    with at_place("hostIP"):
        host_ip = mapping.host_ip and str(addresses.address(mapping.host_ip))
    return replace(mapping, protocol=mapping.protocol.lower(), host_ip=host_ip)


def _check_bandwidth(bandwidth: Bandwidth) -> None:
    values: dict[str, int] = msgspec.to_builtins(bandwidth)
    for name, value in values.items():
        if value not in _RATES:
            problem = "negative" if value < 0 else "more than the plugins can count, which is 64 bits"
            raise ValueError(f"field bandwidth.{name}: {value} is {problem}")
    for direction in ("ingress", "egress"):
        if values.get(f"{direction}Burst") and not values.get(f"{direction}Rate"):
            raise ValueError(f"field bandwidth: {direction}Burst without {direction}Rate; set both")


def _check_together(selections: list[Selection], errors: _AnnotationErrors) -> None:
    """Raise an error if selections that are valid alone contradict each other."""
    by_ifname: dict[str, list[str]] = {}
    for index, selection in enumerate(selections, 1):
        if selection.ifname:
            by_ifname.setdefault(selection.ifname, []).append(_element(index, selection.name))
    for ifname, elements in by_ifname.items():
        if len(elements) > 1:
            them = f"{len(elements)} elements, {' and '.join(elements)}"
            raise errors.about(f"uses the interface name {shown(ifname)} for {them}; use each once")
