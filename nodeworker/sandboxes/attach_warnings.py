"""Find what an operator should know about a sandbox that is attached, and log it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import structlog

from events.fold import Sandbox
from events.schema import AttachWarning, PlannedAttachment, Pod, WarningKind
from nodeworker.planning.resolve.device_use import DeviceUse, device_use

log = structlog.get_logger(__name__)


def warnings_of(sandbox: Sandbox) -> tuple[AttachWarning, ...]:
    """Return the warnings about the attachments of *sandbox*, in their order, after one log line for each."""
    found = tuple(warning for each in sandbox.attachments for warning in _without_device(sandbox.pod, each.plan))
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


def _without_device(pod: Pod, plan: PlannedAttachment) -> Iterator[AttachWarning]:
    """Yield the warning about a plugin that may look for a device, where the pod has none of the resource."""
    if not plan.resource or plan.device:
        return
    if device_use(map(msgspec.json.decode, plan.plugins)) is DeviceUse.OPTIONAL:
        message = (
            f"pod {pod}: network {plan.network} ({plan.ifname}) was attached without a device: neither the kubelet nor "
            f"a resource claim lists one of {plan.resource} for the pod; if its plugins need one, request "
            f"{plan.resource} in the pod's containers"
        )
        yield AttachWarning(kind=WarningKind.DEVICE_MISSING, network=plan.network, ifname=plan.ifname, message=message)
