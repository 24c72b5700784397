"""The part of the CRI that a kubelet uses to create and remove pods."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import cache
from typing import Any

from grpclib.client import Channel, UnaryUnaryMethod

from tests.support.grpc.grpc_messages import messages

_PATIENCE = 60.0
"""Seconds for one call: the runtime waits for the entry point, which waits for the worker."""

_PROTO = """
syntax = "proto3";
package runtime.v1;
message PodSandboxMetadata { string name = 1; string uid = 2; string namespace = 3; uint32 attempt = 4; }
message DNSConfig { repeated string servers = 1; }
message PortMapping { int32 protocol = 1; int32 container_port = 2; int32 host_port = 3; string host_ip = 4; }
message LinuxPodSandboxConfig { string cgroup_parent = 1; }
message PodSandboxConfig {
  PodSandboxMetadata metadata = 1;
  DNSConfig dns_config = 4;
  repeated PortMapping port_mappings = 5;
  LinuxPodSandboxConfig linux = 8;
}
message RunPodSandboxRequest { PodSandboxConfig config = 1; }
message RunPodSandboxResponse { string pod_sandbox_id = 1; }
message StopPodSandboxRequest { string pod_sandbox_id = 1; }
message StopPodSandboxResponse {}
message RemovePodSandboxRequest { string pod_sandbox_id = 1; }
message RemovePodSandboxResponse {}
message PodSandboxStatusRequest { string pod_sandbox_id = 1; bool verbose = 2; }
message PodSandboxNetworkStatus { string ip = 1; }
enum PodSandboxState { SANDBOX_READY = 0; SANDBOX_NOTREADY = 1; }
message PodSandboxStatus { string id = 1; PodSandboxState state = 3; PodSandboxNetworkStatus network = 5; }
message PodSandboxStatusResponse { PodSandboxStatus status = 1; map<string, string> info = 2; }
message ListPodSandboxRequest {}
message PodSandbox { string id = 1; PodSandboxState state = 3; }
message ListPodSandboxResponse { repeated PodSandbox items = 1; }
message StatusRequest { bool verbose = 1; }
message RuntimeCondition { string type = 1; bool status = 2; string message = 4; }
message RuntimeStatus { repeated RuntimeCondition conditions = 1; }
message StatusResponse { RuntimeStatus status = 1; map<string, string> info = 2; }
message ImageSpec { string image = 1; }
message ImageStatusRequest { ImageSpec image = 1; }
message Image { string id = 1; }
message ImageStatusResponse { Image image = 1; }
"""


class CriCall:
    """A call in progress."""

    def __init__(self, loop: asyncio.AbstractEventLoop, asking: asyncio.Task[Any]) -> None:
        self._loop = loop
        self._asking = asking

    def answer(self) -> Any:
        """Wait for the runtime's answer. Raises GRPCError if it refuses, StreamTerminatedError if it ended."""
        return self._loop.run_until_complete(self._asking)

    def give_up(self) -> None:
        """Cancel the call."""
        self._asking.cancel()
        self._loop.run_until_complete(asyncio.wait([self._asking]))


class Cri:
    """A client of the runtime at *socket*. It has no thread: calls only progress while the test waits for one."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._loop = asyncio.new_event_loop()
        self._calls: list[asyncio.Task[Any]] = []

    def close(self) -> None:
        """Cancel the open calls."""
        for call in self._calls:
            call.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._calls, return_exceptions=True))
        self._loop.close()

    def start(self, method: str, **fields: Any) -> CriCall:
        """Send the request; return once the runtime has it."""
        sent = asyncio.Event()
        asking = self._loop.create_task(self._ask(method, fields, sent))
        self._calls.append(asking)
        self._loop.run_until_complete(_first(asking, sent.wait()))
        return CriCall(self._loop, asking)

    def call(self, method: str, **fields: Any) -> Any:
        """Return the answer. Raises as ``CriCall.answer``."""
        return self.start(method, **fields).answer()

    async def _ask(self, method: str, fields: dict[str, Any], sent: asyncio.Event) -> Any:
        service = "ImageService" if "Image" in method else "RuntimeService"
        request, reply = _message(f"{method}Request"), _message(f"{method}Response")
        channel = Channel(path=self._socket)
        try:
            asked = UnaryUnaryMethod(channel, f"/runtime.v1.{service}/{method}", request, reply)
            async with asked.open(timeout=_PATIENCE) as stream:
                await stream.send_message(request(**fields), end=True)
                sent.set()
                return await stream.recv_message()
        finally:
            channel.close()


async def _first(asking: asyncio.Task[Any], sent: Coroutine[Any, Any, Any]) -> None:
    waiting = asyncio.ensure_future(sent)
    await asyncio.wait([asking, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


@cache
def _message(name: str) -> Any:
    return _all_messages()(f"runtime.v1.{name}")


@cache
def _all_messages() -> Any:
    return messages(_PROTO)
