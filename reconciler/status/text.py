"""Render a pod's ``network-status`` annotation.

Pure. Programs in pods parse this text, and some compare it, so it equals Multus' text byte for byte: one element per
interface, printed like Go's ``json.MarshalIndent`` with four blanks, joined by commas in brackets (Kubernetes Network
Custom Resource Definition De-facto Standard 1.3, section 5).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import msgspec
from msgspec.structs import replace

from events.cni_result import DefaultRoute, Dns, Result, ResultError, read
from events.default_routes import claims, is_dropped
from events.fold import Attachment, Sandbox, SandboxPhase
from events.schema import Pod
from reconciler.status import device_info

ANNOTATION = "k8s.v1.cni.cncf.io/network-status"

_ATTACHED = frozenset({SandboxPhase.ATTACHED, SandboxPhase.DETACHING, SandboxPhase.DETACH_FAILED})
_GO_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


class StatusError(ValueError):
    """A status can't be rendered; the message names pod and network, and says why."""


class Element(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One element of the list. The order of the fields is the order in the text."""

    name: str
    interface: str = ""
    ips: tuple[str, ...] = ()
    mac: str = ""
    mtu: int = 0
    default: bool = False
    dns: Dns
    """Always present, if only as ``{}``."""
    device_info: device_info.DeviceInfo | None = msgspec.field(default=None, name="device-info")
    gateway: tuple[str, ...] = ()


class PodStatus(msgspec.Struct, frozen=True):
    """The annotation of one pod."""

    pod: Pod
    text: str


def pod_status(sandboxes: Sequence[Sandbox]) -> PodStatus | None:
    """Return the annotation for the pod with *sandboxes*, oldest first; None without attachments.

    A pod that was created again under its name may still have its old sandbox: the newest attached one counts. The text
    remains while that one is being detached. Raises StatusError.
    """
    attached = [sandbox for sandbox in sandboxes if sandbox.phase in _ATTACHED]
    if not attached:
        return None
    newest = attached[-1]
    listed = [
        element
        for sandbox in attached
        if sandbox.key.container_id == newest.key.container_id
        for element in _of_sandbox(newest.pod, sandbox)
    ]
    return PodStatus(newest.pod, text(listed)) if listed else None


def text(listed: Sequence[Element]) -> str:
    """Return the annotation's text."""
    return f"[{','.join(_go_json(element) for element in listed)}]"


def elements(result: Result, network: str, *, default: bool) -> list[Element]:
    """Return the elements for one attachment's *result*; *default* marks the pod's default network.

    Raises ResultError.
    """
    if len(result.interfaces) != 1:
        return _one_per_interface(result, network, default=default)
    (interface,) = result.interfaces
    inside = bool(interface.sandbox)
    return [
        Element(
            name=network,
            interface=interface.name if inside else "",
            ips=tuple(ip.bare for ip in result.ips),
            mac=interface.mac if inside else "",
            mtu=interface.mtu if inside else 0,
            default=default,
            dns=result.dns,
            gateway=result.default_gateways,
        )
    ]


def _one_per_interface(result: Result, network: str, *, default: bool) -> list[Element]:
    inside = [index for index, interface in enumerate(result.interfaces) if interface.sandbox]
    if not inside:
        return []
    ips: dict[int, list[str]] = {index: [] for index in inside}
    for ip in result.ips:
        ips.get(inside[-1] if ip.interface is None else ip.interface, []).append(ip.bare)
    owner = next((ip.interface for ip in result.ips if ip.gateway and ip.interface is not None), -1)
    default_index = inside[0] if owner == -1 else owner
    return [
        Element(
            name=network,
            interface=result.interfaces[index].name,
            ips=tuple(ips[index]),
            mac=result.interfaces[index].mac,
            mtu=result.interfaces[index].mtu,
            default=default and index == default_index,
            dns=result.dns,
            gateway=result.default_gateways,
        )
        for index in inside
    ]


def _of_sandbox(pod: Pod, sandbox: Sandbox) -> list[Element]:
    attached = [attachment for attachment in sandbox.attachments if attachment.result]
    listed: list[Element] = []
    for attachment, result in zip(
        attached, _with_default_routes([_read(pod, each) for each in attached], attached), strict=True
    ):
        info = device_info.read(attachment.device_info)
        with _require_usable(pod, attachment):
            rendered = elements(result, attachment.plan.network, default=attachment.plan.default)
        listed += [replace(element, device_info=info) for element in rendered]
    return listed


def _with_default_routes(results: Sequence[Result], attached: Sequence[Attachment]) -> Sequence[Result]:
    """Return *results* with the actual default routes, if one of the attachments claims the pod's default route.

    Multus repeats the plugins' results here. But a reader of ``gateway`` wants to know the path of the pod's traffic:
    Multus' text would list routes that the pod does not have, and omit the requested one. Without a claim, the plugins
    are right, and the text equals Multus'. The standard's key ``default-route`` is not written: no client library knows
    it, and ``gateway`` has the same content.
    """
    found = claims([each.plan for each in attached], lambda index: {r.family for r in results[index].default_routes})
    if not found:
        return results
    remaining = [
        tuple(route for route in result.default_routes if not is_dropped(found, index, route.family))
        for index, result in enumerate(results)
    ]
    for claim in found:
        remaining[claim.index] += tuple(DefaultRoute(family, gateway) for family, gateway in claim.gateways.items())
    return [replace(result, default_routes=routes) for result, routes in zip(results, remaining, strict=True)]


def _read(pod: Pod, attachment: Attachment) -> Result:
    with _require_usable(pod, attachment):
        return read(attachment.result, attachment.plan.cni_version)


@contextmanager
def _require_usable(pod: Pod, attachment: Attachment) -> Generator[None]:
    plan = attachment.plan
    try:
        yield
    except ResultError as error:
        raise StatusError(
            f"pod {pod}: the result of network {plan.network} ({plan.ifname}) is unusable: {error}"
        ) from error


def _go_json(element: Element) -> str:
    # The escaped characters occur only inside strings.
    return msgspec.json.format(msgspec.json.encode(element), indent=4).decode().translate(_GO_ESCAPES)
