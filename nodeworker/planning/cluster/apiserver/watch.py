"""Keep a cache of one kind of objects current: list them, then watch for changes.

The protocol is in the Kubernetes API concepts, "Efficient detection of changes". A server ends every watch sooner or
later, a broken server at once. After each end the worker waits: thousands of workers do the same.
"""

from __future__ import annotations

import asyncio
import random
from typing import Generic
from urllib.parse import urlencode

import msgspec
import structlog

from nodeworker.planning.cluster.apiserver.api import (
    Api,
    ApiError,
    ApiRequest,
    GarbledError,
    GoneError,
    Status,
    TooLargeError,
)
from nodeworker.planning.cluster.apiserver.cache import Cache
from nodeworker.planning.cluster.apiserver.decode import UNREADABLE, HasMeta, Key, Kind, Meta, ObjectT, key_of

log = structlog.get_logger(__name__)

_LIST = 30.0
"""Seconds for one page."""
_MARGIN = 15.0
"""Seconds after its own limit in which the server must end a watch."""


class WatchTimings(msgspec.Struct, frozen=True, kw_only=True):
    """The delays, durations and sizes of a watch."""

    first: float = 0.25
    """Seconds, before jitter, until a watch is restarted; doubled after every watch that ends soon."""
    most: float = 30.0
    """The maximum of that delay, in seconds."""
    steady: float = 20.0
    """After a watch of so many seconds the delay is ``first`` again."""
    watch: float = 300.0
    """Seconds, before jitter, after which the server should end a watch."""
    page: int = 100
    """Objects in one page of a list."""


class _ListMeta(msgspec.Struct):
    resource_version: str = msgspec.field(default="", name="resourceVersion")
    following: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


_LISTED = msgspec.json.Decoder(_List)
_EVENT = msgspec.json.Decoder(_Event)
_META = msgspec.json.Decoder(HasMeta)
_STATUS = msgspec.json.Decoder(Status)


class Watch(Generic[ObjectT]):
    """Fills *cache* with the objects of *kind* that match the field *selector*.

    *relaxed* accepts the first list from the server's cache, which may lag a little but saves the server from reading
    all objects of all nodes. For a small selection whose content is checked otherwise.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind[ObjectT],
        cache: Cache[ObjectT],
        timings: WatchTimings,
        *,
        selector: str = "",
        relaxed: bool = False,
    ) -> None:
        self._api = api
        self._kind = kind
        self._cache = cache
        self._timings = timings
        self._selection = {"fieldSelector": selector} if selector else {}
        self._list_from = "0" if relaxed else ""
        self._version = ""
        """The version of the cache; empty: list first."""
        self._logged = ""
        """The last logged problem, until the watch recovers."""
        self.synced = asyncio.Event()
        """Set once the objects have been listed."""
        self.connected = False
        """Whether the watch is connected."""
        self.relists = 0
        """How many lists followed the first."""
        self.errors = 0
        """How many watches ended with an error."""

    @property
    def resource(self) -> str:
        """The watched kind, as roles name it."""
        return self._kind.resource

    def __len__(self) -> int:
        return len(self._cache)

    async def run(self) -> None:
        """List and watch until cancelled."""
        loop = asyncio.get_running_loop()
        delay = self._timings.first
        while True:
            began = loop.time()
            problem = await self._round()
            if loop.time() - began >= self._timings.steady:
                delay = self._timings.first
            asked = min(problem.retry_after, self._timings.most) if problem else 0.0
            await asyncio.sleep(max(asked, delay * _jitter()))
            delay = min(2 * delay, self._timings.most)

    async def _round(self) -> ApiError | None:
        """List if necessary, and follow one watch to its end; return the error that ended it, if any."""
        try:
            if not self._version:
                await self._list()
            await self._follow()
        except GoneError as error:
            # Changes were missed, and a server's cache may lack them too.
            self._version = self._list_from = ""
            log.info("cluster_watch_expired", resource=self.resource, error=str(error))
            return error
        except ApiError as error:
            if isinstance(error, GarbledError):
                self._version = ""
            self.errors += 1
            self._log_problem(str(error))
            return error
        finally:
            self.connected = False
            self._cache.release()
        return None

    def _log_problem(self, problem: str) -> None:
        level = log.debug if problem == self._logged else log.warning
        level("cluster_watch_failed", resource=self.resource, error=problem)
        self._logged = problem

    async def _list(self) -> None:
        found: dict[Key, ObjectT] = {}
        limit = self._timings.page
        # Only the first page names a version: the others have a token for it.
        position = {"resourceVersion": self._list_from}
        while True:
            request = self._request("list", {"limit": str(limit), **position})
            try:
                page = _LISTED.decode(await self._api.get(request, _LIST))
            except TooLargeError:
                if limit == 1:
                    raise
                limit = max(1, limit // 8)
                continue
            except UNREADABLE as error:
                raise self._garbled("a list that can't be read", error) from error
            for item in page.items or ():
                decoded = self._decoded(item, self._meta(item))
                if decoded is not None:
                    found[key_of(decoded)] = decoded
            if not page.metadata.following:
                break
            position = {"continue": page.metadata.following}
        self._cache.replace(found)
        self._version = page.metadata.resource_version
        self.relists += self.synced.is_set()
        self.synced.set()

    async def _follow(self) -> None:
        seconds = max(1, round(self._timings.watch * _jitter()))
        query = {
            "watch": "1",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        async with self._api.stream(self._request("watch", query), seconds + _MARGIN) as lines:
            self.connected = True
            if self._logged:
                log.info("cluster_watch_recovered", resource=self.resource)
                self._logged = ""
            async for line in lines:
                self._apply(line)

    def _apply(self, line: bytes) -> None:
        """Apply one event to the cache. Raises ApiError."""
        try:
            event = _EVENT.decode(line)
        except UNREADABLE as error:
            raise self._garbled("an event that can't be read", error) from error
        if event.type == "ERROR":
            raise self._error(event.object)
        meta = self._meta(event.object)
        key = Key(meta.namespace, meta.name)
        if event.type in ("ADDED", "MODIFIED"):
            decoded = self._decoded(event.object, meta)
            if decoded is not None:
                self._cache.put(decoded)
            else:
                self._cache.drop(key)
        elif event.type == "DELETED":
            self._cache.drop(key)
        # Other types: BOOKMARK, which has the version only, and types of later releases.
        self._version = meta.resource_version or self._version

    def _error(self, text: msgspec.Raw) -> ApiError:
        """Return the error in an event that ends the watch."""
        try:
            status = _STATUS.decode(text)
        except UNREADABLE as error:
            return self._garbled("an error that can't be read", error)
        sentence = f"the API server ended the watch on {self.resource}: {status.code} {status.message}"
        # Whatever the error, the server has refused to continue from this version.
        return GoneError(sentence) if status.code == 410 else GarbledError(sentence, status.retry_after)

    def _meta(self, item: msgspec.Raw) -> Meta:
        try:
            return _META.decode(item).metadata
        except UNREADABLE as error:
            raise self._garbled("an object without metadata", error) from error

    def _decoded(self, item: msgspec.Raw, meta: Meta) -> ObjectT | None:
        """Return the decoded *item*; None: it is unusable, which is logged."""
        try:
            return self._kind.decode(item)
        except UNREADABLE as error:
            log.warning(
                "cluster_object_unusable",
                resource=self.resource,
                namespace=meta.namespace,
                name=meta.name,
                error=str(error),
            )
            return None

    def _request(self, verb: str, query: dict[str, str]) -> ApiRequest:
        target = f"{self._kind.collection()}?{urlencode({**self._selection, **query})}"
        accept = self._kind.accept_list if verb == "list" else self._kind.accept
        return ApiRequest(verb, self.resource, target, accept)

    def _garbled(self, what: str, error: BaseException) -> GarbledError:
        return GarbledError(f"the API server sent {what} to a request for {self.resource}: {error}")


def _jitter() -> float:
    """Return a random factor between 0.5 and 1: thousands of workers do the same at the same time."""
    return random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
