"""Ask the kubelet over its PodResources API (version v1), the one interface that it offers for this.

Import it when it is needed: gRPC costs 4 MB.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from events.schema import Pod
from nodeworker.planning.devices._generated.podresources_grpc import PodResourcesListerStub
from nodeworker.planning.devices._generated.podresources_pb2 import (
    GetPodResourcesRequest,
    ListPodResourcesRequest,
    PodResources,
)
from nodeworker.planning.devices.source import Devices, DevicesUnknownError
from nodeworker.plugins.spec.names import shown

_SECONDS = 10.0
_PAUSE = 0.1
"""Seconds until a kubelet that answers 100 requests in a second is asked again."""

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


async def devices(socket: Path, pod: Pod, seconds: float = _SECONDS) -> Devices:
    """Return the devices of *pod*; nothing for one that the kubelet does not know.

    The kubelet at *socket* has *seconds* to answer. Raises DevicesUnknownError.
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
        said = f"{error.status.name}, {shown(error.message or '')}"
        raise DevicesUnknownError(f"the kubelet at {socket} refused to list the pod's resources: {said}") from error
    except (ProtocolError, StreamTerminatedError, DecodeError) as error:
        raise DevicesUnknownError(f"what answers at {socket} is no kubelet, or stopped: {error}") from error
    finally:
        channel.close()
    return _by_resource(resources)


async def _of_pod(kubelet: PodResourcesListerStub, pod: Pod) -> PodResources | None:
    """Ask for the one pod, and for all of the node where the kubelet can't tell of one."""
    try:
        request = GetPodResourcesRequest(pod_name=pod.name, pod_namespace=pod.namespace)
        return (await _patiently(kubelet.Get, request)).pod_resources
    except GRPCError as error:
        # UNKNOWN is all that a kubelet says whose feature gate is off, and all that it says of a pod that it hasn't.
        if error.status not in (Status.UNIMPLEMENTED, Status.UNKNOWN):
            raise
    listed = (await _patiently(kubelet.List, ListPodResourcesRequest())).pod_resources
    return next((each for each in listed if (each.namespace, each.name) == (pod.namespace, pod.name)), None)


async def _patiently(method: UnaryUnaryMethod[Request, Reply], request: Request) -> Reply:
    """Return the reply of a kubelet that may have had too many requests at once."""
    while True:
        try:
            return await method(request)
        except GRPCError as error:
            if error.status is not Status.RESOURCE_EXHAUSTED:
                raise
        await asyncio.sleep(_PAUSE)


def _by_resource(resources: PodResources | None) -> Devices:
    """Return the devices container by container, sorted within each: the kubelet's own order is that of a Go map."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for container in resources.containers if resources else ():
        of_container: defaultdict[str, list[str]] = defaultdict(list)
        for devices in container.devices:  # one for each NUMA node
            of_container[devices.resource_name] += devices.device_ids
        for resource, ids in of_container.items():
            found[resource] += sorted(ids)
    return {resource: tuple(ids) for resource, ids in found.items()}
