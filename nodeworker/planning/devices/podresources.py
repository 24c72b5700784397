"""Ask the kubelet for a pod's devices over its PodResources API (version v1).

Import it on demand: gRPC costs 4 MB.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import structlog
from google.protobuf.message import DecodeError, Message
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from events.schema import Pod
from nodeworker.planning.devices._generated.podresources_grpc import PodResourcesListerStub
from nodeworker.planning.devices._generated.podresources_pb2 import (
    ContainerResources,
    DynamicResource,
    GetPodResourcesRequest,
    ListPodResourcesRequest,
    PodResources,
)
from nodeworker.planning.devices.source import Devices, DevicesUnknownError
from nodeworker.plugins.spec.names import shown

log = structlog.get_logger(__name__)

_SECONDS = 10.0
_PAUSE = 0.1
"""Seconds until a retry: the kubelet answers at most 100 requests a second."""

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


async def devices(socket: Path, pod: Pod, seconds: float = _SECONDS) -> Devices:
    """Return the devices of *pod*; empty for a pod that the kubelet at *socket* does not know.

    Raises DevicesUnknownError, also after *seconds* without an answer.
    """
    channel = Channel(path=str(socket))
    try:
        async with asyncio.timeout(seconds):
            resources = await _of_pod(PodResourcesListerStub(channel), pod)
    except TimeoutError as error:
        raise DevicesUnknownError(f"the kubelet at {socket} did not answer within {seconds:g} s") from error
    except OSError as error:
        raise DevicesUnknownError(f"the kubelet at {socket} can't be reached: {error.strerror or error}") from error
    except GRPCError as error:
        answer = f"{error.status.name}, {shown(error.message or '')}"
        raise DevicesUnknownError(f"the kubelet at {socket} refused to list the pod's resources: {answer}") from error
    except (ProtocolError, StreamTerminatedError, DecodeError) as error:
        raise DevicesUnknownError(f"the process at {socket} is not a kubelet, or stopped: {error}") from error
    finally:
        channel.close()
    return _by_resource(resources, pod)


async def _of_pod(kubelet: PodResourcesListerStub, pod: Pod) -> PodResources | None:
    """Ask for the one pod, or for all pods of the node if the kubelet does not support that."""
    try:
        request = GetPodResourcesRequest(pod_name=pod.name, pod_namespace=pod.namespace)
        return (await _with_retries(kubelet.Get, request)).pod_resources
    except GRPCError as error:
        # A kubelet answers UNKNOWN if its feature gate is off, and also for a pod that it does not have.
        if error.status not in (Status.UNIMPLEMENTED, Status.UNKNOWN):
            raise
    listed = (await _with_retries(kubelet.List, ListPodResourcesRequest())).pod_resources
    return next((each for each in listed if (each.namespace, each.name) == (pod.namespace, pod.name)), None)


async def _with_retries(method: UnaryUnaryMethod[Request, Reply], request: Request) -> Reply:
    """Return the reply; retry while the kubelet has too many requests."""
    while True:
        try:
            return await method(request)
        except GRPCError as error:
            if error.status is not Status.RESOURCE_EXHAUSTED:
                raise
        await asyncio.sleep(_PAUSE)


def _by_resource(resources: PodResources | None, pod: Pod) -> Devices:
    """Return the devices container by container, sorted within each: the kubelet's order is random (a Go map)."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for container in resources.containers if resources else ():
        of_container: defaultdict[str, list[str]] = defaultdict(list)
        for resource, device in _devices(container, pod):
            of_container[resource].append(device)
        for resource, ids in of_container.items():
            found[resource] += sorted(ids)
    return {resource: tuple(ids) for resource, ids in found.items()}


def _devices(container: ContainerResources, pod: Pod) -> Iterator[tuple[str, str]]:
    """Yield resource and ID of each device of *container*; the resource of a claim's device is the claim's name."""
    for devices in container.devices:  # one for each NUMA node
        yield from ((devices.resource_name, device) for device in devices.device_ids)
    for claim in container.dynamic_resources:
        yield from ((claim.claim_name, device) for device in _of_claim(claim, pod))


def _of_claim(claim: DynamicResource, pod: Pod) -> Iterator[str]:
    """Yield the IDs of the devices of *claim*, which are the last parts of their CDI names, as in Multus 4.3.0."""
    for name in (device.name for resource in claim.claim_resources for device in resource.cdi_devices):
        match name.split("="):
            case _, device:
                yield device
            case _:
                log.warning("cdi_name_unusable", pod=str(pod), claim=claim.claim_name, name=shown(name))
