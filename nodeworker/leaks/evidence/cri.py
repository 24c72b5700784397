"""Ask a container runtime over the Container Runtime Interface (version v1).

Import it on demand: gRPC costs 4 MB.
"""

from __future__ import annotations

import asyncio

from google.protobuf.message import DecodeError
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from nodeworker.leaks.evidence._generated.cri_grpc import RuntimeServiceStub
from nodeworker.leaks.evidence._generated.cri_pb2 import (
    SANDBOX_READY,
    ListContainersRequest,
    ListContainersResponse,
    ListPodSandboxRequest,
    ListPodSandboxResponse,
)
from nodeworker.leaks.evidence.container_runtime import RuntimeUnknownError
from nodeworker.leaks.judge import Inventory
from nodeworker.plugins.spec.names import shown

_SECONDS = 10.0


async def inventory(socket: str, seconds: float = _SECONDS) -> Inventory:
    """Return what the runtime at *socket* has. Raises RuntimeUnknownError, also after *seconds* without an answer."""
    channel = Channel(path=socket)
    name = f"the container runtime at {socket}"
    try:
        async with asyncio.timeout(seconds):
            stub = RuntimeServiceStub(channel)
            containers: ListContainersResponse = await stub.ListContainers(ListContainersRequest())
            sandboxes: ListPodSandboxResponse = await stub.ListPodSandbox(ListPodSandboxRequest())
    except TimeoutError as error:
        raise RuntimeUnknownError(f"{name} did not answer within {seconds:g} s") from error
    except OSError as error:
        raise RuntimeUnknownError(f"{name} can't be reached: {error.strerror or error}") from error
    except GRPCError as error:
        # Docker's own containerd has no CRI: no kubelet runs pods with it.
        absent = error.status is Status.UNIMPLEMENTED
        answer = f"{error.status.name}, {shown(error.message or '')}"
        raise RuntimeUnknownError(f"{name} refused to list its sandboxes: {answer}", absent=absent) from error
    except (ProtocolError, StreamTerminatedError, DecodeError) as error:
        raise RuntimeUnknownError(f"the process at {socket} is not a container runtime, or stopped: {error}") from error
    finally:
        channel.close()
    of_containers = {name for each in containers.containers for name in (each.id, each.pod_sandbox_id)}
    return Inventory(
        present=frozenset(of_containers | {each.id for each in sandboxes.items}),
        running=frozenset(each.id for each in sandboxes.items if each.state == SANDBOX_READY),
        runtime=name,
    )
