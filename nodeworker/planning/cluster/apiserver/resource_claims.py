"""The devices that dynamic resource allocation gave a pod, from its resource claims and the node's slices.

Both are of the API ``resource.k8s.io/v1`` (Kubernetes 1.34). A driver describes a device for networks with two
attributes: the device's ID for plugins, and the resource name for networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from events.schema import Pod
from nodeworker.planning.cluster.apiserver.api import Api, ApiError, ApiRequest, ObjectMissingError
from nodeworker.planning.devices.source import Devices, DevicesUnknownError
from nodeworker.planning.resolve.objects import CONFIG_SOURCE
from nodeworker.plugins.spec.names import shown

DEVICE_ID = "k8s.cni.cncf.io/deviceID"
RESOURCE = "k8s.cni.cncf.io/resourceName"

_API = "/apis/resource.k8s.io/v1"
_UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)


class _Annotations(msgspec.Struct, frozen=True):
    config_source: str = msgspec.field(default="api", name=CONFIG_SOURCE)


class _Meta(msgspec.Struct, frozen=True):
    uid: str = ""
    annotations: _Annotations | None = None


class _PodClaim(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    resource_claim_name: str | None = None


class _Mapping(msgspec.Struct, frozen=True, rename="camel"):
    resource_name: str
    request_name: str


class _Extended(msgspec.Struct, frozen=True, rename="camel"):
    resource_claim_name: str
    request_mappings: list[_Mapping]


class _PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    resource_claims: list[_PodClaim] | None = None


class _PodStatus(msgspec.Struct, frozen=True, rename="camel"):
    resource_claim_statuses: list[_PodClaim] | None = None
    extended_resource_claim_status: _Extended | None = None


class _Pod(msgspec.Struct, frozen=True):
    metadata: _Meta
    spec: _PodSpec
    status: _PodStatus = _PodStatus()


class _Allocated(msgspec.Struct, frozen=True):
    """One device of an allocation."""

    request: str
    driver: str
    pool: str
    device: str


class _AllocatedDevices(msgspec.Struct, frozen=True):
    results: list[_Allocated] | None = None


class _Allocation(msgspec.Struct, frozen=True):
    devices: _AllocatedDevices = _AllocatedDevices()


class _ClaimStatus(msgspec.Struct, frozen=True):
    allocation: _Allocation | None = None


class _Claim(msgspec.Struct, frozen=True):
    status: _ClaimStatus = _ClaimStatus()


class _Attribute(msgspec.Struct, frozen=True):
    string: str = ""


class _Attributes(msgspec.Struct, frozen=True):
    device_id: _Attribute = msgspec.field(default=_Attribute(), name=DEVICE_ID)
    resource: _Attribute = msgspec.field(default=_Attribute(), name=RESOURCE)


class _Device(msgspec.Struct, frozen=True):
    name: str
    attributes: _Attributes = _Attributes()


class _Pool(msgspec.Struct, frozen=True):
    name: str
    generation: int


class _SliceSpec(msgspec.Struct, frozen=True):
    driver: str
    pool: _Pool
    devices: list[_Device] | None = None


class _Slice(msgspec.Struct, frozen=True):
    spec: _SliceSpec


class _Slices(msgspec.Struct, frozen=True):
    items: list[_Slice]


class _DeviceName(NamedTuple):
    """The name of a device in a claim."""

    driver: str
    pool: str
    device: str


class _NetworkDevice(NamedTuple):
    """The same device, as networks and plugins name it."""

    resource: str
    device_id: str


Kind = TypeVar("Kind", _Pod, _Claim, _Slices)


class Claims:
    """``DeviceSource`` from the resource claims of pods on *node*, read through *api*."""

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self._node = node

    async def devices(self, pod: Pod) -> Devices:
        """Return the devices that *pod* was allocated, in the order of its claims and of the devices in each.

        Devices without the two attributes are skipped. Raises DevicesUnknownError.
        """
        whole = await self._get("pods", f"/api/v1/namespaces/{quote(pod.namespace, safe='')}", pod.name, _Pod)
        about = whole.metadata
        if about.annotations and about.annotations.config_source != "api":
            return {}  # a static pod can't have a claim
        if pod.uid and about.uid != pod.uid:
            raise DevicesUnknownError(f"the API server has pod {pod} under UID {about.uid} instead of {pod.uid}")
        claimed = [result for name in _names(whole) for result in await self._results(pod, name)]
        extended = whole.status.extended_resource_claim_status
        mapped = await self._results(pod, extended.resource_claim_name) if extended else []
        known = await self._described({result.driver for result in (*claimed, *mapped)})
        found = [known[name] for name in map(_name, claimed) if name in known]
        if extended:
            found += _of_extended(extended, mapped, known)
        return {resource: tuple(d.device_id for d in found if d.resource == resource) for resource, _ in found}

    async def _results(self, pod: Pod, claim: str) -> list[_Allocated]:
        """Return the devices that are allocated to *claim*."""
        folder = f"{_API}/namespaces/{quote(pod.namespace, safe='')}"
        found = await self._get("resourceclaims", folder, claim, _Claim)
        if found.status.allocation is None:
            raise DevicesUnknownError(f"resource claim {pod.namespace}/{claim} has not been allocated")
        return found.status.allocation.devices.results or []

    async def _described(self, drivers: Iterable[str]) -> dict[_DeviceName, _NetworkDevice]:
        """Return the devices of *drivers* on this node that have the two attributes."""
        known: dict[_DeviceName, _NetworkDevice] = {}
        for driver in sorted(drivers):
            selector = quote(f"spec.nodeName={self._node},spec.driver={driver}", safe="")
            slices = [each.spec for each in (await self._list("resourceslices", selector)).items]
            newest = {s.pool.name: s.pool.generation for s in sorted(slices, key=lambda spec: spec.pool.generation)}
            for spec in slices:
                if spec.pool.generation == newest[spec.pool.name]:  # the driver will remove older ones
                    known |= _of_slice(spec)
        return known

    async def _get(self, resource: str, folder: str, name: str, kind: type[Kind]) -> Kind:
        return await self._ask(ApiRequest("get", resource, f"{folder}/{resource}/{quote(name, safe='')}", _JSON), kind)

    async def _list(self, resource: str, selector: str) -> _Slices:
        return await self._ask(
            ApiRequest("list", resource, f"{_API}/{resource}?fieldSelector={selector}", _JSON), _Slices
        )

    async def _ask(self, request: ApiRequest, kind: type[Kind]) -> Kind:
        try:
            return msgspec.json.decode(await self._api.get(request), type=kind)
        except ObjectMissingError as error:
            raise DevicesUnknownError(f"{error} ({request.target})") from error
        except ApiError as error:
            raise DevicesUnknownError(str(error)) from error
        except _UNREADABLE as error:
            raise DevicesUnknownError(f"the API server's answer for {request.target} can't be read: {error}") from error


_JSON = "application/json"


def _names(pod: _Pod) -> list[str]:
    """Return the names of the pod's claims; the status has the names of those created from a template."""
    made = {status.name: status.resource_claim_name for status in pod.status.resource_claim_statuses or ()}
    names = [claim.resource_claim_name or made.get(claim.name) for claim in pod.spec.resource_claims or ()]
    return [name for name in names if name]


def _name(result: _Allocated) -> _DeviceName:
    return _DeviceName(result.driver, result.pool, result.device)


def _of_slice(spec: _SliceSpec) -> dict[_DeviceName, _NetworkDevice]:
    found = {
        _DeviceName(spec.driver, spec.pool.name, device.name): _NetworkDevice(
            device.attributes.resource.string, device.attributes.device_id.string
        )
        for device in spec.devices or ()
    }
    return {name: device for name, device in found.items() if all(device)}


def _of_extended(
    extended: _Extended, results: Iterable[_Allocated], known: Mapping[_DeviceName, _NetworkDevice]
) -> Iterable[_NetworkDevice]:
    """Yield the devices of the claim that the scheduler created for extended resources of the containers."""
    for mapping in extended.request_mappings:
        of_request = [result for result in results if result.request == mapping.request_name]
        claim = f"resource claim {extended.resource_claim_name}"
        if not of_request:
            raise DevicesUnknownError(f"{claim} has no device for the request {mapping.request_name}")
        for name in map(_name, of_request):
            if name not in known:
                continue
            if known[name].resource != mapping.resource_name:
                raise DevicesUnknownError(
                    f"{claim} has device {name.device} for resource {mapping.resource_name}, but its attribute "
                    f"{RESOURCE} is {shown(known[name].resource)}; its driver must make the two equal"
                )
            yield known[name]
