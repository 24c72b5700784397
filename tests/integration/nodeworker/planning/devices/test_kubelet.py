"""A pod's devices from the kubelet: from a real gRPC server, and from the checkpoint file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from events.schema import Pod
from nodeworker.planning.devices import podresources
from nodeworker.planning.devices.kubelet import Kubelet
from nodeworker.planning.devices.source import DevicesUnknownError
from tests.support.kube.kubelet import kubelet, pod

PLAIN = Pod("default", "plain", "uid-1")
SRIOV, RDMA = "vendor.example/sriov", "vendor.example/rdma"


@pytest.mark.parametrize(("get", "calls"), [("works", ["Get"]), ("disabled", ["Get", "List"]), ("unknown", ["List"])])
async def test_devices_are_read_from_either_kubelet_method(tmp_path: Path, get: str, calls: list[str]) -> None:
    others = [pod("plain", [(SRIOV, ["9"])], namespace="other"), pod("other", [(SRIOV, ["8"])])]
    with kubelet(tmp_path, *others, pod("plain", [(SRIOV, ["0000:03:02.1"])]), get=get) as running:
        assert await asked(running.socket) == {SRIOV: ("0000:03:02.1",)}
        assert running.calls == calls


async def test_devices_are_ordered_by_container_then_sorted(tmp_path: Path) -> None:
    containers = [(SRIOV, ["c", "d"]), (RDMA, ["r1"]), (SRIOV, ["b"])], [], [(RDMA, ["r0"]), (SRIOV, ["e", "a"])]
    with kubelet(tmp_path, pod("plain", *containers)) as running:
        assert await asked(running.socket) == {SRIOV: ("b", "c", "d", "a", "e"), RDMA: ("r1", "r0")}


@pytest.mark.parametrize("get", ["works", "unknown"])
async def test_devices_of_claims_are_listed_under_the_claims_name(tmp_path: Path, get: str) -> None:
    """The input of Multus 4.3.0 in ``pkg/kubeletclient/kubeletclient_test.go``, and its result."""
    claims = {"resource-claim": ["cdi-kind=cdi-resource"], "two": ["v.example/nic=eth2", "v.example/nic=eth1"]}
    with kubelet(tmp_path, pod("plain", [(SRIOV, ["a"])], claims=claims), get=get) as running:
        found = await asked(running.socket)
    assert found == {SRIOV: ("a",), "resource-claim": ("cdi-resource",), "two": ("eth1", "eth2")}


async def test_claim_of_several_containers_is_listed_by_each(tmp_path: Path) -> None:
    with kubelet(tmp_path, pod("plain", [], [], claims={"shared": ["v.example/nic=eth1"]})) as running:
        assert await asked(running.socket) == {"shared": ("eth1", "eth1")}  # find_devices drops the repetition


async def test_unqualified_cdi_names_are_skipped(tmp_path: Path) -> None:
    with kubelet(tmp_path, pod("plain", [], claims={"claim": ["eth1", "a=b=c", "v.example/nic=eth2"]})) as running:
        assert await asked(running.socket) == {"claim": ("eth2",)}


async def test_a_pod_without_devices_has_none(tmp_path: Path) -> None:
    with kubelet(tmp_path, pod("plain", [], [])) as running:
        assert await asked(running.socket) == {}


async def test_a_pod_that_the_kubelet_does_not_know_has_none(tmp_path: Path) -> None:
    with kubelet(tmp_path, pod("other", [(SRIOV, ["a"])])) as running:
        assert await asked(running.socket) == {}
        assert running.calls == ["Get", "List"]


async def test_overloaded_kubelet_is_asked_again(tmp_path: Path) -> None:
    with kubelet(tmp_path, pod("plain", [(SRIOV, ["a"])]), busy=2) as running:
        assert await asked(running.socket) == {SRIOV: ("a",)}
        assert running.calls == ["Get"] * 3


async def test_a_node_with_many_pods_is_read_to_the_end(tmp_path: Path) -> None:
    crowd = [pod(f"p{n}", [(SRIOV, [f"{n}-{i}-{'x' * 80}" for i in range(200)])]) for n in range(300)]  # 5 MiB
    with kubelet(tmp_path, *crowd, get="disabled") as running:
        found = await asked(running.socket, Pod("default", "p299"))
    assert len(found[SRIOV]) == 200


async def asked(socket: Path, of: Pod = PLAIN) -> Any:
    return await Kubelet(socket, Path("/nonexistent")).devices(of)


Speech = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(socket: Path, speech: Speech) -> AsyncGenerator[None, None]:
    spoken: set[asyncio.Task[None]] = set()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await speech(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        spoken.add(asyncio.create_task(speak(reader, writer)))

    server = await asyncio.start_unix_server(accept, socket)
    try:
        yield
    finally:
        server.close()
        await asyncio.gather(*spoken)


async def garbage(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-nonsense\r\n" * 10)
    await writer.drain()


async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def hang_up(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    pass


@pytest.mark.parametrize("speech", [garbage, hang_up])
async def test_server_that_is_not_a_kubelet_is_an_error(tmp_path: Path, speech: Speech) -> None:
    socket = tmp_path / "s"
    async with listening(socket, speech):
        with pytest.raises(DevicesUnknownError, match=f"{socket} is not a kubelet, or stopped"):
            await asked(socket)


async def test_silent_kubelet_times_out(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    async with listening(socket, silence):
        with pytest.raises(DevicesUnknownError, match=r"did not answer within 0\.1 s"):
            await podresources.devices(socket, PLAIN, 0.1)


async def test_socket_without_listener_is_an_error(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    socket.touch()
    with pytest.raises(DevicesUnknownError, match=f"the kubelet at {socket} can't be reached"):
        await asked(socket)


def checkpoint(path: Path, *entries: tuple[str, str, str, Any]) -> Path:
    body = [
        {"PodUID": uid, "ContainerName": name, "ResourceName": resource, "DeviceIDs": ids, "AllocResp": "Cg=="}
        for uid, name, resource, ids in entries
    ]
    path.write_text(json.dumps({"Data": {"PodDeviceEntries": body, "RegisteredDevices": {}}, "Checksum": 1}))
    return path


async def test_checkpoint_is_read_without_a_socket(tmp_path: Path) -> None:
    file = checkpoint(
        tmp_path / "checkpoint",
        ("uid-1", "b", SRIOV, {"1": ["d", "c"], "0": ["e"]}),
        ("uid-2", "a", SRIOV, {"0": ["x"]}),
        ("uid-1", "a", SRIOV, ["z", "y"]),
        ("uid-1", "a", RDMA, {"-1": ["r"], "0": None}),
    )
    found = await Kubelet(tmp_path / "missing.sock", file).devices(PLAIN)
    assert found == {SRIOV: ("y", "z", "c", "d", "e"), RDMA: ("r",)}
    assert await Kubelet(tmp_path / "missing.sock", file).devices(Pod("default", "new", "uid-9")) == {}


async def test_checkpoint_without_entries_has_no_devices(tmp_path: Path) -> None:
    (tmp_path / "c").write_text('{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":1}')
    assert await Kubelet(tmp_path / "missing.sock", tmp_path / "c").devices(PLAIN) == {}


async def test_checkpoint_needs_the_pods_uid(tmp_path: Path) -> None:
    with pytest.raises(DevicesUnknownError, match="lists pods by UID only"):
        await Kubelet(tmp_path / "missing.sock", checkpoint(tmp_path / "c")).devices(Pod("default", "plain"))


async def test_error_without_socket_and_checkpoint_names_both(tmp_path: Path) -> None:
    socket, file = tmp_path / "missing.sock", tmp_path / "missing"
    with pytest.raises(DevicesUnknownError, match=f"no kubelet at {socket}, and its file {file} can't be read"):
        await Kubelet(socket, file).devices(PLAIN)


@pytest.mark.parametrize("text", ["", '{"Data":{"PodDeviceEnt', "[]", '{"Data":{"PodDeviceEntries":[{}]}}', "\ud800"])
async def test_torn_checkpoint_is_an_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "checkpoint"
    file.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(DevicesUnknownError, match=f"{file} is incomplete, or of an unknown format"):
        await Kubelet(tmp_path / "missing.sock", file).devices(PLAIN)


def test_a_worker_does_not_load_grpc_before_a_pod_needs_it() -> None:
    code = (
        "import sys, nodeworker.__main__; print([m for m in ('grpclib', 'google.protobuf', 'h2') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
