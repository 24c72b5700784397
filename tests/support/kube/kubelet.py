"""The kubelet's PodResources API as the kubelet has it: another implementation of gRPC, and the messages in full.

A separate process, because one process can't have two definitions of the same messages.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from events.process.child_process import die_with_parent

PROTO = """
syntax = "proto3";
package v1;
message ListPodResourcesRequest {}
message ListPodResourcesResponse { repeated PodResources pod_resources = 1; }
message GetPodResourcesRequest { string pod_name = 1; string pod_namespace = 2; }
message GetPodResourcesResponse { PodResources pod_resources = 1; }
message PodResources { string name = 1; string namespace = 2; repeated ContainerResources containers = 3; }
message ContainerResources {
  string name = 1;
  repeated ContainerDevices devices = 2;
  repeated int64 cpu_ids = 3;
  repeated ContainerMemory memory = 4;
  repeated DynamicResource dynamic_resources = 5;
}
message ContainerMemory { string memory_type = 1; uint64 size = 2; TopologyInfo topology = 3; }
message ContainerDevices { string resource_name = 1; repeated string device_ids = 2; TopologyInfo topology = 3; }
message TopologyInfo { repeated NUMANode nodes = 1; }
message NUMANode { int64 ID = 1; }
message DynamicResource {
  reserved 1;
  string claim_name = 2;
  string claim_namespace = 3;
  repeated ClaimResource claim_resources = 4;
}
message ClaimResource {
  repeated CDIDevice cdi_devices = 1;
  string driver_name = 2;
  string pool_name = 3;
  string device_name = 4;
  optional string share_id = 5;
}
message CDIDevice { string name = 1; }
"""


class StandIn(NamedTuple):
    """A kubelet that answers."""

    socket: Path
    log: Path

    @property
    def calls(self) -> list[str]:
        """The methods that were called, in order."""
        return self.log.read_text().split()


@contextlib.contextmanager
def kubelet(folder: Path, *pods: dict[str, Any], get: str = "works", busy: int = 0) -> Iterator[StandIn]:
    """Run a kubelet that has *pods* and refuses the first *busy* calls, as it does when it gets too many.

    *get*: the method Get ``works``, is ``disabled`` by its feature gate, or ``unknown`` to that version.
    """
    said = StandIn(folder / "kubelet.sock", folder / "calls")
    said.log.touch()
    known = folder / "pods.json"
    known.write_text(json.dumps(pods))
    command = [sys.executable, __file__, str(said.socket), str(said.log), str(known), get, str(busy)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        preexec_fn=die_with_parent(),  # noqa: PLW1509
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield said
    finally:
        process.kill()
        process.communicate()


def pod(
    name: str,
    *containers: list[tuple[str, list[str]]],
    namespace: str = "default",
    claims: Mapping[str, list[str]] | None = None,
) -> dict[str, Any]:
    """Return a pod; each container has devices by resource, and uses *claims*: CDI names by name of the claim."""
    return {"namespace": namespace, "name": name, "containers": containers, "claims": claims or {}}


def _serve(socket: str, log: str, pods: str, get: str, busy: str) -> None:
    import grpc  # noqa: PLC0415  # only this process speaks gRPC this way
    from google.protobuf import message_factory  # noqa: PLC0415

    pool = _compiled()

    def message(name: str) -> Any:
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"v1.{name}"))

    def claim(namespace: str, name: str, cdi_names: list[str]) -> dict[str, Any]:
        resources = [
            {"driver_name": "nic.example", "pool_name": "n1", "device_name": "d", "cdi_devices": [{"name": cdi_name}]}
            for cdi_name in cdi_names
        ]
        return {"claim_name": name, "claim_namespace": namespace, "claim_resources": resources}

    def resources(given: dict[str, Any]) -> Any:
        containers = [
            {
                "name": f"c{number}",
                "cpu_ids": [1, 2],
                "memory": [{"memory_type": "memory", "size": 1 << 40, "topology": {"nodes": [{"ID": 1}]}}],
                "dynamic_resources": [claim(given["namespace"], *each) for each in given["claims"].items()],
                "devices": [
                    {"resource_name": resource, "device_ids": ids, "topology": {"nodes": [{"ID": 0}]}}
                    for resource, ids in devices
                ],
            }
            for number, devices in enumerate(given["containers"])
        ]
        return message("PodResources")(name=given["name"], namespace=given["namespace"], containers=containers)

    known = json.loads(Path(pods).read_text())
    left = [None] * int(busy)

    def entered(method: str, context: Any) -> None:
        with open(log, "a") as file:
            file.write(f"{method}\n")
        if left:
            left.pop()
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")

    def on_list(_: Any, context: Any) -> Any:
        entered("List", context)
        return message("ListPodResourcesResponse")(pod_resources=map(resources, known))

    def on_get(request: Any, context: Any) -> Any:
        entered("Get", context)
        if get == "disabled":
            context.abort(grpc.StatusCode.UNKNOWN, "PodResources API Get method disabled")
        for each in known:
            if (each["namespace"], each["name"]) == (request.pod_namespace, request.pod_name):
                return message("GetPodResourcesResponse")(pod_resources=resources(each))
        return context.abort(grpc.StatusCode.UNKNOWN, "pod not found")

    def handler(behaviour: Any, name: str) -> Any:
        request, reply = message(f"{name}PodResourcesRequest"), message(f"{name}PodResourcesResponse")
        return grpc.unary_unary_rpc_method_handler(behaviour, request.FromString, reply.SerializeToString)

    methods = {"List": handler(on_list, "List")} | ({} if get == "unknown" else {"Get": handler(on_get, "Get")})
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1.PodResourcesLister", methods),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.wait_for_termination()


def _compiled() -> Any:
    """Return the pool with the messages of ``PROTO``."""
    from google.protobuf import descriptor_pb2, descriptor_pool  # noqa: PLC0415
    from grpc_tools import protoc  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "api.proto").write_text(PROTO)
        assert not protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={folder}/set", "api.proto"])
        described = descriptor_pb2.FileDescriptorSet.FromString((Path(folder) / "set").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in described.file:
        pool.Add(file)
    return pool


if __name__ == "__main__":
    _serve(*sys.argv[1:])
