"""Watch the network-status annotations of all pods by one watch of the API server.

The server sends objects without spec and status (``PartialObjectMetadata``), and the decoder skips all unused fields:
this cost is paid for every pod of the cluster. Kubernetes API concepts, "Efficient detection of changes": list, then
watch from the list's version. ``410 Gone`` requires a new list; bookmarks keep the version recent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import aiohttp
import msgspec
import structlog
from kubernetes_asyncio import client

from events.process.backoff import delays
from reconciler.projection.fold.published import PodName
from reconciler.status.sink import LISTED, ObservedStatus
from reconciler.status.text import ANNOTATION

log = structlog.get_logger(__name__)

_PAGE = 500
_LIST_TIMEOUT = 60.0
_WATCH = 270
"""Seconds until the server ends a watch, plus a random spread: watches that began together must not end together."""
_SPREAD = 30
_GRACE = 15
_GONE = 410
_AS_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_AS_OBJECT = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_ACCEPT = ",application/json"


class _Metadata(msgspec.Struct):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    annotations: dict[str, str] | None = None
    resource_version: str = msgspec.field(default="", name="resourceVersion")
    more: str = msgspec.field(default="", name="continue")


class _Object(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    code: int = 0
    message: str = ""


class _List(msgspec.Struct):
    metadata: _Metadata
    items: list[_Object] | None = None
    """The server writes null for an empty list."""


class _Change(msgspec.Struct):
    type: str
    object: _Object


_list = msgspec.json.Decoder(_List)
_change = msgspec.json.Decoder(_Change)
_object = msgspec.json.Decoder(_Object)


class WatchError(Exception):
    """The API server refused a request. *retry_after*: seconds that it asked for."""

    def __init__(self, message: str, *, code: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class AnnotationWatch:
    """Reads the statuses of pods on *node*; empty: of all pods. RBAC: ``get``, ``list`` and ``watch`` on pods."""

    def __init__(self, api: client.ApiClient, node: str = "") -> None:
        self._api: Any = api  # Any: the library has no types for raw responses
        self._scope = [("fieldSelector", f"spec.nodeName={node}")] if node else []

    async def watch(self) -> AsyncGenerator[ObservedStatus, None]:
        """Yield the status of every pod, then ``LISTED``, then each change. Runs until closed."""
        pauses = delays()
        version = ""
        while True:
            try:
                if not version:
                    fresh = ""
                    async with aclosing(self.read_all()) as listed:
                        async for found, fresh in listed:  # noqa: B007  # the last version is the list's
                            if found is not None:
                                yield found
                    version = fresh
                    yield LISTED
                    log.info("annotations_listed", version=version)
                async with aclosing(self._watched(version)) as watched:
                    async for found, version in watched:  # noqa: B007  # the next watch continues there
                        pauses = delays()
                        if found is not None:
                            yield found
            except (WatchError, msgspec.MsgspecError, aiohttp.ClientError, TimeoutError, OSError) as error:
                gone = isinstance(error, WatchError) and error.code == _GONE
                version = "" if gone or isinstance(error, msgspec.MsgspecError) else version
                asked = error.retry_after if isinstance(error, WatchError) else 0.0
                pause = 0.0 if gone else max(asked, next(pauses) * random.uniform(0.5, 1.5))  # noqa: S311
                log.warning("annotations_not_watched", error=str(error) or type(error).__name__, retry_in=pause)
                await asyncio.sleep(pause)

    async def read_all(self) -> AsyncGenerator[tuple[ObservedStatus | None, str], None]:
        """Yield the status of every pod with the list's version, finally None with the version.

        Raises WatchError and the errors of aiohttp.
        """
        more = ""
        while True:
            query = [("limit", str(_PAGE)), *([("continue", more)] if more else []), *self._scope]
            page = _list.decode(await self._get("/api/v1/pods", query, _AS_LIST))
            version = page.metadata.resource_version
            for item in page.items or ():
                yield _seen(item), version
            more = page.metadata.more
            if not more:
                yield None, version
                return

    async def read(self, pod: PodName) -> ObservedStatus | None:
        """Return the status of *pod*; None: there is no such pod. Raises the errors of ``read_all``."""
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        try:
            return _seen(_object.decode(await self._get(path, [], _AS_OBJECT)))
        except WatchError as error:
            if error.code == 404:
                return None
            raise

    async def _watched(self, version: str) -> AsyncGenerator[tuple[ObservedStatus | None, str], None]:
        seconds = _WATCH + random.randrange(_SPREAD)  # noqa: S311
        query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", str(seconds)),
            *self._scope,
        ]
        answer = await self._ask("/api/v1/pods", query, _AS_OBJECT, seconds + _GRACE)
        try:
            rest = b""
            async for part in answer.content.iter_any():
                *whole, rest = (rest + part).split(b"\n")
                for line in whole:
                    change = _change.decode(line)
                    if change.type == "ERROR":
                        raise WatchError(change.object.message, code=change.object.code)
                    found = None if change.type == "BOOKMARK" else _seen(change.object, gone=change.type == "DELETED")
                    yield found, change.object.metadata.resource_version
        finally:
            answer.close()

    async def _get(self, path: str, query: list[tuple[str, str]], accept: str) -> bytes:
        answer = await self._ask(path, query, accept, _LIST_TIMEOUT)
        return await answer.read()

    async def _ask(
        self, path: str, query: list[tuple[str, str]], accept: str, seconds: float
    ) -> aiohttp.ClientResponse:
        answer = await self._api.call_api(
            path,
            "GET",
            {},
            query,
            {"Accept": accept + _ACCEPT},
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=seconds,
        )
        if answer.status >= 300:
            content = await answer.read()
            raise WatchError(
                f"the API server refuses GET {path} with {answer.status}: {_message(content)}; "
                "the reconciler needs get, list and watch on pods",
                code=answer.status,
                retry_after=_seconds(answer.headers.get("Retry-After", "")),
            )
        return answer


def _seen(item: _Object, *, gone: bool = False) -> ObservedStatus:
    metadata = item.metadata
    pod = PodName(metadata.namespace, metadata.name)
    return ObservedStatus(pod, metadata.uid, (metadata.annotations or {}).get(ANNOTATION), gone)


def _message(content: bytes) -> str:
    try:
        return _object.decode(content).message
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return content[:200].decode(errors="replace")


def _seconds(retry_after: str) -> float:
    return min(60.0, float(retry_after)) if retry_after.isdecimal() else 0.0
