"""A Kubernetes cluster as the source of pods and networks: this node's pods and all networks, at hand before asked for.

Two watches keep them current, so that attaching a pod costs no request. A copy on disk bridges a start without API
server. What is not at hand is asked for: nothing is taken for missing because it has not been heard of yet.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Generic

import structlog

from nodeworker.planning.cluster.apiserver.api import Api, ApiError, Ask, ObjectMissingError
from nodeworker.planning.cluster.apiserver.cache import Cache
from nodeworker.planning.cluster.apiserver.credentials import Credentials
from nodeworker.planning.cluster.apiserver.decode import NADS, PODS, UNREADABLE, Key, Kind, ObjectT, key_of
from nodeworker.planning.cluster.apiserver.disk_cache import DiskCache
from nodeworker.planning.cluster.apiserver.resource_claims import Claims
from nodeworker.planning.cluster.apiserver.watch import Pace, Watch
from nodeworker.planning.cluster.source import SourceUnavailableError
from nodeworker.planning.resolve.objects import Nad, PodObject
from nodeworker.plugins.spec.names import is_namespace, is_object_name

_AGENT = "plumbline-worker"
_COPY_EVERY = 5.0
"""Seconds between two copies of objects that change all the time."""

log = structlog.get_logger(__name__)


class Kubernetes:
    """``Source`` from the API server that *credentials* name, for the pods of *node*.

    What is known is copied to *folder*. A pod that the watch has not told of yet is waited for *pod_wait* seconds.
    Look-ups work from the beginning; ``run`` makes them fast and independent of the API server.
    """

    def __init__(
        self, credentials: Credentials, node: str, folder: Path, *, pod_wait: float = 2.0, pace: Pace | None = None
    ) -> None:
        pace = pace or Pace()
        self._api = Api(credentials, _AGENT)
        self._claims = Claims(self._api, node)
        self._pod_wait = pod_wait
        selector = f"spec.nodeName={node}"
        self._pods = _Kept(PODS, DiskCache(folder / "pods.json", PODS, f"pods of node {node}"))
        self._nads = _Kept(NADS, DiskCache(folder / "networks.json", NADS, "networks"))
        self._pod_watch = Watch(self._api, PODS, self._pods.cache, pace, selector=selector, relaxed=True)
        self._nad_watch = Watch(self._api, NADS, self._nads.cache, pace)

    async def pod(self, namespace: str, name: str, uid: str = "") -> PodObject | None:
        """Return the pod *namespace*/*name*, if possible the incarnation *uid*, which another may have followed.

        Raises SourceUnavailableError.
        """
        if not _possible(namespace, name):
            return None
        key = Key(namespace, name)
        return self._known(key, uid) or await self._awaited(key, uid) or await self._live(PODS, key)

    async def nad(self, namespace: str, name: str) -> Nad | None:
        """Return the NetworkAttachmentDefinition *namespace*/*name*. Raises SourceUnavailableError."""
        if not _possible(namespace, name):
            return None
        key = Key(namespace, name)
        return self._nads.cache.get(key) or await self._live(NADS, key)

    async def run(self) -> None:
        """Keep pods, networks and their copies current until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pod_watch.run(), name="watch pods")
            tasks.create_task(self._nad_watch.run(), name="watch networks")
            tasks.create_task(self._pods.keep(), name="copy pods")
            tasks.create_task(self._nads.keep(), name="copy networks")

    async def ready(self, seconds: float) -> bool:
        """Return true once all is known, false if it is not within *seconds*."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for watch in self.watches:
                    await watch.synced.wait()
        return self.synced

    @property
    def claims(self) -> Claims:
        """Who knows of the devices that pods have by resource claims: the API server is asked each time."""
        return self._claims

    @property
    def synced(self) -> bool:
        """Whether all has been listed since the start; before, the copy on disk is served."""
        return all(watch.synced.is_set() for watch in self.watches)

    @property
    def connected(self) -> bool:
        """Whether all changes come in now."""
        return all(watch.connected for watch in self.watches)

    @property
    def watches(self) -> tuple[Watch[PodObject], Watch[Nad]]:
        """Each with its counters."""
        return self._pod_watch, self._nad_watch

    def close(self) -> None:
        """Write what is not copied yet and let go of the connections. ``run`` has ended before."""
        self._pods.close()
        self._nads.close()
        self._api.close()

    def _known(self, key: Key, uid: str) -> PodObject | None:
        pod = self._pods.cache.get(key)
        # The API knows a static pod by the UID of its mirror, never by the one that the runtime has.
        fits = pod is not None and (pod.static or not uid or pod.uid == uid)
        return pod if fits else None

    async def _awaited(self, key: Key, uid: str) -> PodObject | None:
        """Return the pod when the watch tells of it; None: it does not, or not soon. The kubelet is often faster."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pod_wait):
                while self._pod_watch.connected:
                    await self._pods.cache.arrival(key)
                    if found := self._known(key, uid):
                        return found
        return None

    async def _live(self, kind: Kind[ObjectT], key: Key) -> ObjectT | None:
        """Ask the API server. Raises SourceUnavailableError."""
        try:
            found = kind.decode(await self._api.get(Ask("get", kind.resource, kind.object(key), kind.accept)))
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
                f"when asked for {key.namespace}/{key.name}"
            )
        return found


class _Kept(Generic[ObjectT]):
    """Objects and their copy on disk."""

    def __init__(self, kind: Kind[ObjectT], copy: DiskCache[ObjectT]) -> None:
        self._kind = kind
        self._copy = copy
        self._failed = ""
        self.cache: Cache[ObjectT] = Cache(copy.load())

    async def keep(self) -> None:
        """Copy what changed, and what changes soon after with it."""
        while True:
            await self.cache.changed.wait()
            await asyncio.sleep(_COPY_EVERY)
            self.cache.changed.clear()
            await asyncio.to_thread(self._save, self.cache.objects())

    def close(self) -> None:
        """Copy what has not been."""
        if self.cache.changed.is_set():
            self._save(self.cache.objects())
        self._copy.close()

    def _save(self, objects: tuple[ObjectT, ...]) -> None:
        """A copy that can't be written is told once; the next change tries again."""
        try:
            self._copy.save(objects)
        except OSError as error:
            if str(error) != self._failed:
                log.warning("cluster_copy_failed", resource=self._kind.resource, error=str(error))
            self._failed = str(error)
        else:
            self._failed = ""


def _possible(namespace: str, name: str) -> bool:
    """Whether an object can have that name at all; whatever else there is would not even make a proper path."""
    return is_namespace(namespace) and is_object_name(name)
