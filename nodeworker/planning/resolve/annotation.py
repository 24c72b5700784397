"""Parse a pod's network annotations, in both forms of the NPWG specification (1.3, section 4), and check every field.

Multus accepts more and fails late, or attaches something else than requested. Here an accepted selection can be
planned. An error names annotation, element and field, before any effect. As in Multus, a field that is null, empty or
zero requests nothing, the case of its name does not matter, and an unknown field is ignored.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import msgspec

from events.schema import ErrorClass, Phase
from nodeworker.errors import RequestFailedError, failed
from nodeworker.planning.resolve.config_keys import names_of
from nodeworker.plugins.spec.names import (
    decode_json,
    ifname_problem,
    is_guid,
    is_ip,
    is_ip_or_cidr,
    is_mac,
    is_namespace,
    is_object_name,
    respelled,
    shown,
)

NETWORKS = "k8s.v1.cni.cncf.io/networks"
DEFAULT_NETWORK = "v1.multus-cni.io/default-network"
PROTOCOLS = frozenset({"tcp", "udp", "sctp"})


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
    """One network that a pod requests, with its parameters."""

    namespace: str
    name: str
    ifname: str = ""
    ips: tuple[str, ...] = ()
    mac: str = ""
    infiniband_guid: str = ""
    port_mappings: tuple[PortMapping, ...] = ()
    bandwidth: Bandwidth | None = None
    device_id: str = ""
    cni_args: dict[str, Any] = {}
    default_route: tuple[str, ...] | None = None
    """Gateways. An empty list is a request too: keep the default route of the network."""
    ipam_claim_reference: str = ""
    """Not passed on: an implementation of IPAMClaims reads it from the pod, and others must ignore it."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


_DEPRECATED = "interfaceRequest"
_FIELDS = (*names_of(Selection), _DEPRECATED)


@functools.lru_cache(64)
def parse_networks(text: str, default_namespace: str, *, pod: str = "") -> tuple[Selection, ...]:
    """Return the selections of the annotation ``k8s.v1.cni.cncf.io/networks``; none if it is blank.

    *pod* is for the error message only. Cached, because an ADD parses the same text more than once. Raises
    RequestFailedError (INVALID_ANNOTATION).
    """
    return _parse(text, default_namespace, _AnnotationErrors(NETWORKS, pod))


def parse_default_network(text: str, default_namespace: str, *, pod: str = "") -> Selection:
    """Return the only selection of the annotation ``v1.multus-cni.io/default-network``.

    Raises RequestFailedError (INVALID_ANNOTATION).
    """
    errors = _AnnotationErrors(DEFAULT_NETWORK, pod)
    selections = _parse(text, default_namespace, errors)
    if len(selections) != 1:
        raise errors.about(f"selects {len(selections)} networks; select exactly one")
    return selections[0]


class _AnnotationErrors:
    """Builds the errors of one annotation: all sentences begin with the pod and the annotation."""

    def __init__(self, annotation: str, pod: str) -> None:
        self._subject = f"pod {pod}: annotation {annotation}" if pod else f"annotation {annotation}"

    def about(self, problem: str) -> RequestFailedError:
        """Return the error for a problem of the whole annotation."""
        return failed(
            ErrorClass.INVALID_ANNOTATION, Phase.RESOLVE, f"{self._subject} {problem}; correct it and recreate the pod"
        )

    def at(self, index: int, name: object, problem: str) -> RequestFailedError:
        """Return the error for a problem of the element *index*, counted from 1."""
        label = f" ({shown(name)})" if isinstance(name, str) and name else ""
        return self.about(f"element {index}{label}: {problem}")


def _parse(text: str, default_namespace: str, errors: _AnnotationErrors) -> tuple[Selection, ...]:
    if not text.strip():
        return ()
    elements = _json_elements(text, errors) if any(c in text for c in '[{"') else _short_elements(text, errors)
    selections: list[Selection] = []
    for index, element in enumerate(elements, 1):
        name = element.get("name")
        try:
            selection = msgspec.convert({"namespace": default_namespace, "name": "", **element}, Selection)
        except msgspec.ValidationError as error:
            raise errors.at(index, name, _wrong_type(error)) from error
        for field, problem in _problems(selection):
            raise errors.at(index, name, f"field {field} {problem}")
        selections.append(selection)
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
    try:
        value = decode_json(text)
    except ValueError as error:
        raise errors.about(f"is not valid JSON: {error}") from error
    if not isinstance(value, list):
        raise errors.about("is JSON but not a list of network selection elements")
    for index, element in enumerate(cast("list[Any]", value), 1):
        if not isinstance(element, dict):
            raise errors.at(index, "", "is not a JSON object")
        fields = respelled(cast("dict[str, Any]", element), _FIELDS)
        given = {key: field for key, field in fields.items() if field is not None and field != ""}
        given.setdefault("interface", given.get(_DEPRECATED, ""))
        yield given


def _wrong_type(error: msgspec.ValidationError) -> str:
    """Return msgspec's message with the field first; it has the form ``Expected `str`, got `int` - at `$.mac` ``."""
    problem, _, path = str(error).partition(" - at `$.")
    return f"field {path.rstrip('`')}: {problem}" if path else problem


def _problems(selection: Selection) -> Iterator[tuple[str, str]]:
    """Yield field and problem of everything that is wrong with one selection."""
    if not selection.name:
        yield "name", "is missing"
    elif not is_object_name(selection.name):
        yield "name", f"is {shown(selection.name)}, which is not a DNS-1123 name"
    if not is_namespace(selection.namespace):
        yield "namespace", f"is {shown(selection.namespace)}, which is not a DNS-1123 label"
    if selection.ifname and (problem := ifname_problem(selection.ifname)):
        yield "interface", f"is {shown(selection.ifname)}, which {problem}"
    yield from _address_problems(selection)
    for mapping in selection.port_mappings:
        yield from _port_problems(mapping)
    if selection.bandwidth is not None:
        yield from _bandwidth_problems(selection.bandwidth)


def _address_problems(selection: Selection) -> Iterator[tuple[str, str]]:
    for ip in selection.ips:
        if not is_ip_or_cidr(ip):
            yield "ips", f"holds {shown(ip)}, which is neither an IP address nor one with a prefix length"
    if selection.mac and not is_mac(selection.mac):
        yield "mac", f"is {shown(selection.mac)}, which is not a 6-byte MAC address"
    if selection.infiniband_guid and not is_guid(selection.infiniband_guid):
        yield "infiniband-guid", f"is {shown(selection.infiniband_guid)}, which is not an 8-byte GUID"
    for gateway in selection.default_route or ():
        if not is_ip(gateway):
            yield "default-route", f"holds {shown(gateway)}, which is not an IP address"
    for family, count in Counter(":" in gateway for gateway in selection.default_route or ()).items():
        if count > 1:
            yield "default-route", f"holds {count} IPv{6 if family else 4} gateways; a family has one default route"
    if selection.ips and selection.ipam_claim_reference:
        yield "ips", "and field ipam-claim-reference exclude each other"


def _port_problems(mapping: PortMapping) -> Iterator[tuple[str, str]]:
    for field, port in (("hostPort", mapping.host_port), ("containerPort", mapping.container_port)):
        if not 1 <= port <= 65535:
            yield "portMappings", f"holds {field} {shown(str(port))}, which is not between 1 and 65535"
    if mapping.protocol.lower() not in PROTOCOLS:
        yield "portMappings", f"holds protocol {shown(mapping.protocol)}, which is none of TCP, UDP and SCTP"
    if mapping.host_ip and not is_ip(mapping.host_ip):
        yield "portMappings", f"holds hostIP {shown(mapping.host_ip)}, which is not an IP address"


def _bandwidth_problems(bandwidth: Bandwidth) -> Iterator[tuple[str, str]]:
    directions = (
        ("ingress", bandwidth.ingress_rate, bandwidth.ingress_burst),
        ("egress", bandwidth.egress_rate, bandwidth.egress_burst),
    )
    for direction, rate, burst in directions:
        if rate < 0 or burst < 0:
            yield "bandwidth", f"holds a negative {direction} value"
        if burst and not rate:
            yield "bandwidth", f"holds {direction}Burst without {direction}Rate"


def _check_together(selections: list[Selection], errors: _AnnotationErrors) -> None:
    """Raise an error if selections that are valid alone contradict each other."""
    for ifname, count in Counter(s.ifname for s in selections if s.ifname).items():
        if count > 1:
            raise errors.about(f"uses the interface name {shown(ifname)} for {count} elements; use each once")
