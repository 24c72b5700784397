"""A Kubernetes API server as the source of pods and networks: this node's pods and all networks are cached.

Two watches keep the cache current, so that attaching a pod costs no request. A copy on disk serves a start without the
API server. If an object is not cached, the API server is asked: an uncached object may exist.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Generic

import structlog

from nodeworker.planning.cluster.apiserver.api import Api, ApiError, ApiRequest, ObjectMissingError
from nodeworker.planning.cluster.apiserver.cache import Cache
from nodeworker.planning.cluster.apiserver.credentials import Credentials
from nodeworker.planning.cluster.apiserver.decode import NADS, PODS, UNREADABLE, Key, Kind, ObjectT, key_of
from nodeworker.planning.cluster.apiserver.disk_cache import DiskCache
from nodeworker.planning.cluster.apiserver.resource_claims import Claims
from nodeworker.planning.cluster.apiserver.watch import Watch, WatchTimings
from nodeworker.planning.cluster.source import SourceUnavailableError
from nodeworker.planning.resolve.objects import Nad, PodObject
from nodeworker.plugins.spec.names import is_namespace, is_object_name

_AGENT = "plumbline-worker"
_COPY_EVERY = 5.0
"""Seconds between two copies to disk while objects change all the time."""

log = structlog.get_logger(__name__)


class Kubernetes:
    """``Source`` from the API server in *credentials*, for the pods of *node*.

    The cache is copied to *folder*. A look-up waits *pod_wait* seconds for the watch to deliver a pod. Look-ups work
    before ``run``; ``run`` makes them fast and independent of the API server.
    """

    def __init__(
        self,
        credentials: Credentials,
        node: str,
        folder: Path,
        *,
        pod_wait: float = 2.0,
        timings: WatchTimings | None = None,
    ) -> None:
        timings = timings or WatchTimings()
        self._api = Api(credentials, _AGENT)
        self._claims = Claims(self._api, node)
        self._pod_wait = pod_wait
        selector = f"spec.nodeName={node}"
        self._pods = _MirroredCache(PODS, DiskCache(folder / "pods.json", PODS, f"pods of node {node}"))
        self._nads = _MirroredCache(NADS, DiskCache(folder / "networks.json", NADS, "networks"))
        self._pod_watch = Watch(self._api, PODS, self._pods.cache, timings, selector=selector, relaxed=True)
        self._nad_watch = Watch(self._api, NADS, self._nads.cache, timings)

    async def pod(self, namespace: str, name: str, uid: str = "") -> PodObject | None:
        """Return the pod *namespace*/*name*, preferably its incarnation *uid*; a later one may have replaced it.

        Raises SourceUnavailableError.
        """
        if not _possible(namespace, name):
            return None
        key = Key(namespace, name)
        return self._cached(key, uid) or await self._awaited(key, uid) or await self._requested(PODS, key)

    async def nad(self, namespace: str, name: str) -> Nad | None:
        """Return the NetworkAttachmentDefinition *namespace*/*name*. Raises SourceUnavailableError."""
        if not _possible(namespace, name):
            return None
        key = Key(namespace, name)
        return self._nads.cache.get(key) or await self._requested(NADS, key)

    async def run(self) -> None:
        """Keep the cache and its copy current until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pod_watch.run(), name="watch pods")
            tasks.create_task(self._nad_watch.run(), name="watch networks")
            tasks.create_task(self._pods.mirror(), name="copy pods")
            tasks.create_task(self._nads.mirror(), name="copy networks")

    async def ready(self, seconds: float) -> bool:
        """Return true when all objects are listed, false after *seconds*."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for watch in self.watches:
                    await watch.synced.wait()
        return self.synced

    @property
    def claims(self) -> Claims:
        """The source of devices by resource claims; it asks the API server each time."""
        return self._claims

    @property
    def synced(self) -> bool:
        """Whether all objects were listed since the start; before, the copy from disk is served."""
        return all(watch.synced.is_set() for watch in self.watches)

    @property
    def connected(self) -> bool:
        """Whether both watches are connected."""
        return all(watch.connected for watch in self.watches)

    @property
    def watches(self) -> tuple[Watch[PodObject], Watch[Nad]]:
        """The two watches, with their counters."""
        return self._pod_watch, self._nad_watch

    def close(self) -> None:
        """Write outstanding changes to disk, and close idle connections. Call it after ``run`` has ended."""
        self._pods.close()
        self._nads.close()
        self._api.close()

    def _cached(self, key: Key, uid: str) -> PodObject | None:
        pod = self._pods.cache.get(key)
        # The API has a static pod under the UID of its mirror pod, never under the one that the runtime has.
        fits = pod is not None and (pod.static or not uid or pod.uid == uid)
        return pod if fits else None

    async def _awaited(self, key: Key, uid: str) -> PodObject | None:
        """Return the pod when the watch delivers it; None: it does not in time. The kubelet is often faster."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pod_wait):
                while self._pod_watch.connected:
                    await self._pods.cache.arrival(key)
                    if found := self._cached(key, uid):
                        return found
        return None

    async def _requested(self, kind: Kind[ObjectT], key: Key) -> ObjectT | None:
        """Return the object from the API server. Raises SourceUnavailableError."""
        try:
            found = kind.decode(await self._api.get(ApiRequest("get", kind.resource, kind.object(key), kind.accept)))
        except ObjectMissingError:
            return None
        except ApiError as error:
            raise SourceUnavailableError(str(error)) from error
        except UNREADABLE as error:
            raise SourceUnavailableError(
                f"the API server's answer for {kind.resource} {key.namespace}/{key.name} can't be read: {error}"
            ) from error
        if key_of(found) != key:
            raise SourceUnavailableError(
                f"the API server answered with {kind.resource} {found.namespace}/{found.name} "
                f"to a request for {key.namespace}/{key.name}"
            )
        return found


class _MirroredCache(Generic[ObjectT]):
    """A cache and its copy on disk."""

    def __init__(self, kind: Kind[ObjectT], copy: DiskCache[ObjectT]) -> None:
        self._kind = kind
        self._copy = copy
        self._failed = ""
        self.cache: Cache[ObjectT] = Cache(copy.load())

    async def mirror(self) -> None:
        """Copy changes to disk, several at a time, until cancelled."""
        while True:
            await self.cache.changed.wait()
            await asyncio.sleep(_COPY_EVERY)
            self.cache.changed.clear()
            await asyncio.to_thread(self._save, self.cache.objects())

    def close(self) -> None:
        """Copy outstanding changes."""
        if self.cache.changed.is_set():
            self._save(self.cache.objects())
        self._copy.close()

    def _save(self, objects: tuple[ObjectT, ...]) -> None:
        """Log a failure once; the next change tries again."""
        try:
            self._copy.save(objects)
        except OSError as error:
            if str(error) != self._failed:
                log.warning("cluster_copy_failed", resource=self._kind.resource, error=str(error))
            self._failed = str(error)
        else:
            self._failed = ""


def _possible(namespace: str, name: str) -> bool:
    """Return whether an object can have that name; other names would not even form a valid path."""
    return is_namespace(namespace) and is_object_name(name)
