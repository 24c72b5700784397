"""A fake API server for faults that a real one can't be made to show; it records its requests."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from tests.support.kube.manifests import nad


class Request(NamedTuple):
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    at: float
    """The event loop's time."""

    @property
    def verb(self) -> str:
        if "watch" in self.query:
            return "watch"
        return "list" if self.path.endswith(("/pods", "/network-attachment-definitions")) else "get"

    @property
    def kind(self) -> str:
        return "pods" if "/pods" in self.path else "nads"


class Reply:
    """The server's end of one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def raw(self, content: bytes) -> None:
        self._writer.write(content)
        await self._writer.drain()

    async def json(self, body: object, status: int = 200, headers: str = "") -> None:
        await self.text(json.dumps(body), status, headers)

    async def text(self, body: str, status: int = 200, headers: str = "") -> None:
        content = body.encode()
        await self.raw(f"HTTP/1.1 {status} S\r\n{headers}content-length: {len(content)}\r\n\r\n".encode() + content)

    async def begin(self) -> None:
        await self.raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")

    async def chunk(self, content: bytes) -> None:
        await self.raw(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    async def events(self, *events: dict[str, Any]) -> None:
        await self.chunk(b"".join(json.dumps(event).encode() + b"\n" for event in events))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def hold(self) -> None:
        """Send nothing more until the client disconnects."""
        await self._reader.read()

    def hang_up(self) -> None:
        self._writer.close()


Behaviour = Callable[[Request, Reply], Awaitable[None]]


async def empty_list(_: Request, reply: Reply) -> None:
    await reply.json(listed())


async def silence(_: Request, reply: Reply) -> None:
    await reply.begin()
    await reply.hold()


async def missing(_: Request, reply: Reply) -> None:
    await reply.json({"kind": "Status", "reason": "NotFound", "message": "not found", "code": 404}, 404)


class FakeApi:
    """Answers as configured for networks and for a single pod; it lists no pod, and no pod changes."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.on_list: Behaviour = empty_list
        self.on_watch: Behaviour = silence
        self.on_get: Behaviour = missing
        self.on_get_pod: Behaviour = missing
        self.url = ""
        self._more = asyncio.Event()

    def asked(self, verb: str) -> list[Request]:
        """Return the requests about networks so far."""
        return [request for request in self.requests if request.kind == "nads" and request.verb == verb]

    async def until_asked(self, verb: str, times: int) -> list[Request]:
        """Return the same once there are so many."""
        while len(asked := self.asked(verb)) < times:
            self._more.clear()
            await self._more.wait()
        return asked

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                request = _request(head)
                self.requests.append(request)
                self._more.set()
                await self._behaviour(request)(request, Reply(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _behaviour(self, request: Request) -> Behaviour:
        if request.verb == "get":
            return self.on_get if request.kind == "nads" else self.on_get_pod
        if request.kind == "pods":
            return silence if request.verb == "watch" else empty_list
        return self.on_watch if request.verb == "watch" else self.on_list


def _request(head: bytes) -> Request:
    first, *lines = head.decode().strip().split("\r\n")
    parts = urlsplit(first.split(" ")[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Request(
        parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)), headers, asyncio.get_running_loop().time()
    )


@asynccontextmanager
async def fake_api(**behaviour: Behaviour) -> AsyncGenerator[FakeApi, None]:
    """Serve as ``on_list``, ``on_watch``, ``on_get`` and ``on_get_pod`` say."""
    fake = FakeApi()
    for name, does in behaviour.items():
        setattr(fake, name, does)
    tasks: set[asyncio.Task[None]] = set()
    writers: weakref.WeakSet[asyncio.StreamWriter] = weakref.WeakSet()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        task = asyncio.create_task(fake.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()
        await asyncio.sleep(0.01)  # one that was just accepted would be lost unclosed
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in tuple(writers):  # of a task, too, that was cancelled before it began
            writer.close()
        await asyncio.sleep(0)


def listed(*items: dict[str, Any], version: str = "1", following: str = "") -> dict[str, Any]:
    """Return a list of *items*."""
    return {"kind": "List", "metadata": {"resourceVersion": version, "continue": following}, "items": list(items)}


def network(name: str, config: Any = "{}", version: str = "1") -> dict[str, Any]:
    """Return the NAD ``default/name``."""
    manifest = nad("default", name, config)
    manifest["metadata"]["resourceVersion"] = version
    return manifest


def event(kind: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return an event of a watch."""
    return {"type": kind, "object": manifest}


def bookmark(version: str) -> dict[str, Any]:
    """Return an event that has only the version."""
    return event("BOOKMARK", {"kind": "NetworkAttachmentDefinition", "metadata": {"resourceVersion": version}})
