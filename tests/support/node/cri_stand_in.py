"""A container runtime's CRI socket with a real gRPC server and full messages; the test sets its sandboxes.

A separate process, because a server has threads, and pytest must not have any.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from events.process.child_process import die_with_parent
from tests.support.grpc.grpc_messages import messages

PROTO = """
syntax = "proto3";
package runtime.v1;
message PodSandboxMetadata { string name = 1; string uid = 2; string namespace = 3; uint32 attempt = 4; }
enum PodSandboxState { SANDBOX_READY = 0; SANDBOX_NOTREADY = 1; }
message PodSandboxStateValue { PodSandboxState state = 1; }
message PodSandboxFilter { string id = 1; PodSandboxStateValue state = 2; map<string, string> label_selector = 3; }
message ListPodSandboxRequest { PodSandboxFilter filter = 1; }
message PodSandbox {
  string id = 1;
  PodSandboxMetadata metadata = 2;
  PodSandboxState state = 3;
  int64 created_at = 4;
  map<string, string> labels = 5;
  map<string, string> annotations = 6;
  string runtime_handler = 7;
}
message ListPodSandboxResponse { repeated PodSandbox items = 1; }
enum ContainerState { CONTAINER_CREATED = 0; CONTAINER_RUNNING = 1; CONTAINER_EXITED = 2; CONTAINER_UNKNOWN = 3; }
message ContainerMetadata { string name = 1; uint32 attempt = 2; }
message ImageSpec { string image = 1; map<string, string> annotations = 2; }
message ListContainersRequest { PodSandboxFilter filter = 1; }
message Container {
  string id = 1;
  string pod_sandbox_id = 2;
  ContainerMetadata metadata = 3;
  ImageSpec image = 4;
  string image_ref = 5;
  ContainerState state = 6;
  int64 created_at = 7;
  map<string, string> labels = 8;
  map<string, string> annotations = 9;
}
message ListContainersResponse { repeated Container containers = 1; }
"""


class Cri:
    """A runtime that lists the sandboxes of ``knows``."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "cri.sock"
        self._known = folder / "sandboxes.json"
        self.knows()
        self._process: subprocess.Popen[bytes] | None = None

    def knows(self, *running: str, ended: tuple[str, ...] = (), containers: tuple[tuple[str, str], ...] = ()) -> None:
        """Set the sandboxes and *containers*, which are (ID, sandbox)."""
        draft = self._known.with_suffix(".draft")
        draft.write_text(json.dumps({"running": running, "ended": ended, "containers": containers}))
        draft.rename(self._known)

    def start(self) -> None:
        """Start the server."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.socket), str(self._known)],
            stdout=subprocess.PIPE,
            preexec_fn=die_with_parent(),  # noqa: PLW1509
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def stop(self) -> None:
        """Kill the server; its socket stays."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@contextlib.contextmanager
def cri(folder: Path) -> Iterator[Cri]:
    """Run a runtime without sandboxes."""
    runtime = Cri(folder)
    runtime.start()
    try:
        yield runtime
    finally:
        runtime.stop()


def _serve(socket: str, known: str) -> None:
    import grpc  # noqa: PLC0415  # only this process speaks gRPC this way

    find = messages(PROTO)

    def message(name: str) -> Any:
        return find(f"runtime.v1.{name}")

    def on_sandboxes(_: Any, __: Any) -> Any:
        known_state = json.loads(Path(known).read_text())
        listed = [(name, 0) for name in known_state["running"]] + [(name, 1) for name in known_state["ended"]]
        items = [
            message("PodSandbox")(
                id=name,
                metadata={"name": f"pod-{place}", "uid": str(place), "namespace": "default"},
                state=state,
                created_at=1,
                labels={"io.kubernetes.pod.name": f"pod-{place}"},
                runtime_handler="runc",
            )
            for place, (name, state) in enumerate(listed)
        ]
        return message("ListPodSandboxResponse")(items=items)

    def on_containers(_: Any, __: Any) -> Any:
        known_state = json.loads(Path(known).read_text())
        containers = [
            message("Container")(id=name, pod_sandbox_id=sandbox, state=1, image={"image": "busybox"})
            for name, sandbox in known_state["containers"]
        ]
        return message("ListContainersResponse")(containers=containers)

    def handler(behaviour: Any, name: str) -> Any:
        request, reply = message(f"{name}Request"), message(f"{name}Response")
        return grpc.unary_unary_rpc_method_handler(behaviour, request.FromString, reply.SerializeToString)

    methods = {
        "ListPodSandbox": handler(on_sandboxes, "ListPodSandbox"),
        "ListContainers": handler(on_containers, "ListContainers"),
    }
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("runtime.v1.RuntimeService", methods),))
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.wait_for_termination()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
