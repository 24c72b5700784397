"""Find what an operator should know about a sandbox that is attached, and log it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import structlog
from msgspec.structs import replace

from events.fold import Sandbox
from events.schema import AttachWarning, ErrorClass, Phase, PlannedAttachment, WarningKind
from nodeworker.errors import failed, subject_of
from nodeworker.planning.resolve.device_use import DeviceUse, device_use
from nodeworker.planning.resolve.route_claims import unrequested_routes, void_claims
from nodeworker.sandboxes import default_route
from nodeworker.sandboxes.default_route import TakenRoute

log = structlog.get_logger(__name__)

_REMEDY = "remove it from the network's configuration, or set default-route in the pod's annotation"


async def warnings_of(sandbox: Sandbox, *, refuse_default_routes: bool) -> tuple[AttachWarning, ...]:
    """Return the warnings about the attachments of *sandbox*, after one log line for each.

    Raises RequestFailedError: ROUTE_FAILED for a default route that a network took, if *refuse_default_routes*, or if
    the routes can't be read.
    """
    subject = subject_of(sandbox.pod, sandbox.key.container_id)
    warnings = [
        *(warning for each in sandbox.attachments for warning in _without_device(each.plan)),
        *(_void_claim(plan) for plan in void_claims(sandbox.attachments)),
        *await _taken_routes(sandbox, refuse=refuse_default_routes),
    ]
    found = tuple(replace(each, message=f"{subject}: {each.message}") for each in warnings)
    for warning in found:
        log.warning(
            "attached_with_warning",
            pod=str(sandbox.pod),
            sandbox=sandbox.key.container_id[:12],
            network=warning.network,
            ifname=warning.ifname,
            kind=warning.kind.value,
            message=warning.message,
        )
    return found


def _without_device(plan: PlannedAttachment) -> Iterator[AttachWarning]:
    """Yield the warning about a plugin that may look for a device, where the pod has none of the resource."""
    if not plan.resource or plan.device:
        return
    if device_use(map(msgspec.json.decode, plan.plugins)) is DeviceUse.OPTIONAL:
        message = (
            f"network {plan.network} ({plan.ifname}) was attached without a device: neither the kubelet nor "
            f"a resource claim lists one of {plan.resource} for the pod; if its plugins need one, request "
            f"{plan.resource} in the pod's containers"
        )
        yield AttachWarning(kind=WarningKind.DEVICE_MISSING, network=plan.network, ifname=plan.ifname, message=message)


def _void_claim(plan: PlannedAttachment) -> AttachWarning:
    return AttachWarning(
        kind=WarningKind.DEFAULT_ROUTE_ABSENT,
        network=plan.network,
        ifname=plan.ifname,
        message=(
            f"default-route of network {plan.network} ({plan.ifname}) names no gateway, and the network's "
            f"plugins created no default route, so the pod keeps its routes; name a gateway, or remove the key"
        ),
    )


async def _taken_routes(sandbox: Sandbox, *, refuse: bool) -> list[AttachWarning]:
    unrequested = unrequested_routes(sandbox.attachments)
    if not unrequested:
        return []
    assert sandbox.plan is not None
    found = await asyncio.to_thread(default_route.taken, sandbox.plan.netns, unrequested)
    if found and refuse:
        route = found[0].route
        message = f"{_told(found[0])}; worker.unrequestedDefaultRoute refuses it: {_REMEDY}"
        raise failed(ErrorClass.ROUTE_FAILED, Phase.ADD, message, network=route.network, ifname=route.ifname)
    return [
        AttachWarning(
            kind=WarningKind.DEFAULT_ROUTE_TAKEN,
            network=each.route.network,
            ifname=each.route.ifname,
            message=f"{_told(each)}; {_REMEDY}",
        )
        for each in found
    ]


def _told(taken: TakenRoute) -> str:
    route = taken.route
    used = "uses all of" if route.family == 6 else "uses the first of"
    return (
        f"network {route.network} ({route.ifname}) brought a default route of IPv{route.family} that no "
        f"default-route requests, and the pod {used}: {taken.routes}"
    )
