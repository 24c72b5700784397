"""Keep the objects of one kind in line with the API server: list them, then follow what changes.

The protocol is that of the Kubernetes API concepts, "Efficient detection of changes". A server ends every watch sooner
or later, and a broken one at once, so whatever the end, the next beginning waits: thousands of workers do the same.
"""

from __future__ import annotations

import asyncio
import random
from typing import Generic
from urllib.parse import urlencode

import msgspec
import structlog

from nodeworker.planning.cluster.apiserver.api import Api, ApiError, Ask, GarbledError, GoneError, Status, TooLargeError
from nodeworker.planning.cluster.apiserver.cache import Cache
from nodeworker.planning.cluster.apiserver.decode import UNREADABLE, HasMeta, Key, Kind, Meta, ObjectT, key_of

log = structlog.get_logger(__name__)

_LIST = 30.0
"""Seconds for one page."""
_MARGIN = 15.0
"""Seconds past its own limit that the server gets to end a watch."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How often the API server is asked, and for how much."""

    first: float = 0.25
    """Seconds, but for jitter, until a watch is begun again; they double with every end that comes soon."""
    most: float = 30.0
    """Seconds that they grow to."""
    steady: float = 20.0
    """A watch that lasted for so many seconds begins anew with ``first``."""
    watch: float = 300.0
    """Seconds, but for jitter, after which the server is to end a watch."""
    page: int = 100
    """Objects that one answer may list."""


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

    *relaxed* takes the first list from the server's memory, which may lag a little but spares it from reading all
    objects of all nodes: for a selection that is small, and whose content is checked by other means.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind[ObjectT],
        cache: Cache[ObjectT],
        pace: Pace,
        *,
        selector: str = "",
        relaxed: bool = False,
    ) -> None:
        self._api = api
        self._kind = kind
        self._cache = cache
        self._pace = pace
        self._selection = {"fieldSelector": selector} if selector else {}
        self._list_from = "0" if relaxed else ""
        self._version = ""
        """Up to which the cache is in line; empty: list first."""
        self._told = ""
        """The last problem that was logged and still lasts."""
        self.synced = asyncio.Event()
        """Set once the objects have been listed."""
        self.connected = False
        """Whether changes come in now."""
        self.relists = 0
        """Lists after the first."""
        self.errors = 0
        """Endpoints that were none of a watch's ordinary ones."""

    @property
    def resource(self) -> str:
        """What is watched, as roles name it."""
        return self._kind.resource

    def __len__(self) -> int:
        return len(self._cache)

    async def run(self) -> None:
        """Do so until cancelled."""
        loop = asyncio.get_running_loop()
        delay = self._pace.first
        while True:
            began = loop.time()
            problem = await self._round()
            if loop.time() - began >= self._pace.steady:
                delay = self._pace.first
            asked = min(problem.retry_after, self._pace.most) if problem else 0.0
            await asyncio.sleep(max(asked, delay * _jitter()))
            delay = min(2 * delay, self._pace.most)

    async def _round(self) -> ApiError | None:
        """List, unless that can be spared, and follow one watch to its end; return why it was not an ordinary one."""
        try:
            if not self._version:
                await self._list()
            await self._follow()
        except GoneError as error:
            # Changes were missed, and a server's memory may lack them too.
            self._version = self._list_from = ""
            log.info("cluster_watch_expired", resource=self.resource, error=str(error))
            return error
        except ApiError as error:
            if isinstance(error, GarbledError):
                self._version = ""
            self.errors += 1
            self._tell(str(error))
            return error
        finally:
            self.connected = False
            self._cache.release()
        return None

    def _tell(self, problem: str) -> None:
        level = log.debug if problem == self._told else log.warning
        level("cluster_watch_failed", resource=self.resource, error=problem)
        self._told = problem

    async def _list(self) -> None:
        found: dict[Key, ObjectT] = {}
        limit = self._pace.page
        # A page after the first names no version: its token does.
        place = {"resourceVersion": self._list_from}
        while True:
            ask = self._ask("list", {"limit": str(limit), **place})
            try:
                page = _LISTED.decode(await self._api.get(ask, _LIST))
            except TooLargeError:
                if limit == 1:
                    raise
                limit = max(1, limit // 8)
                continue
            except UNREADABLE as error:
                raise self._garbled("a list that can't be read", error) from error
            for item in page.items or ():
                kept = self._decoded(item, self._meta(item))
                if kept is not None:
                    found[key_of(kept)] = kept
            if not page.metadata.following:
                break
            place = {"continue": page.metadata.following}
        self._cache.replace(found)
        self._version = page.metadata.resource_version
        self.relists += self.synced.is_set()
        self.synced.set()

    async def _follow(self) -> None:
        seconds = max(1, round(self._pace.watch * _jitter()))
        query = {
            "watch": "1",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        async with self._api.stream(self._ask("watch", query), seconds + _MARGIN) as lines:
            self.connected = True
            if self._told:
                log.info("cluster_watch_recovered", resource=self.resource)
                self._told = ""
            async for line in lines:
                self._apply(line)

    def _apply(self, line: bytes) -> None:
        """Bring the cache in line with one event. Raises ApiError."""
        try:
            event = _EVENT.decode(line)
        except UNREADABLE as error:
            raise self._garbled("an event that can't be read", error) from error
        if event.type == "ERROR":
            raise self._error(event.object)
        meta = self._meta(event.object)
        key = Key(meta.namespace, meta.name)
        if event.type in ("ADDED", "MODIFIED"):
            kept = self._decoded(event.object, meta)
            if kept is not None:
                self._cache.put(kept)
            else:
                self._cache.drop(key)
        elif event.type == "DELETED":
            self._cache.drop(key)
        # What is left is BOOKMARK, which tells the version only, or not known yet.
        self._version = meta.resource_version or self._version

    def _error(self, text: msgspec.Raw) -> ApiError:
        """Return what an event says that ends the watch."""
        try:
            status = _STATUS.decode(text)
        except UNREADABLE as error:
            return self._garbled("an error that can't be read", error)
        sentence = f"the API server ended the watch on {self.resource}: {status.code} {status.message}"
        # Whatever it is, to go on from this version has just been refused.
        return GoneError(sentence) if status.code == 410 else GarbledError(sentence, status.retry_after)

    def _meta(self, item: msgspec.Raw) -> Meta:
        try:
            return _META.decode(item).metadata
        except UNREADABLE as error:
            raise self._garbled("an object without metadata", error) from error

    def _decoded(self, item: msgspec.Raw, meta: Meta) -> ObjectT | None:
        """Return what is kept of *item*. One that can't be used is told, and stops no other."""
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

    def _ask(self, verb: str, query: dict[str, str]) -> Ask:
        target = f"{self._kind.collection()}?{urlencode({**self._selection, **query})}"
        accept = self._kind.accept_list if verb == "list" else self._kind.accept
        return Ask(verb, self.resource, target, accept)

    def _garbled(self, what: str, error: BaseException) -> GarbledError:
        return GarbledError(f"the API server sent {what} when asked for {self.resource}: {error}")


def _jitter() -> float:
    """Return a factor of 1 at most, for what thousands do at the same time."""
    return random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
