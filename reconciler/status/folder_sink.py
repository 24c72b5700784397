"""Write network-statuses to files beside the manifests, on a machine without an API server."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import msgspec

from events.schema import ErrorClass, Pod
from reconciler.projection.fold.published import PodName
from reconciler.status.sink import LISTED, ObservedStatus, PublishError, require_pod_name
from reconciler.status.text import ANNOTATION, PodStatus

POLL_INTERVAL = 2.0
"""Seconds between two scans for foreign changes. A machine has only a few hundred files, so polling suffices."""


class _Document(msgspec.Struct):
    uid: str = ""
    annotations: dict[str, str] = {}


_SUFFIX, _SHORT_SUFFIX = ".json", ".j"
_LONGEST_FILE_NAME = 255


def _file_name(pod: str) -> str:
    """Return the name of the file of *pod*. It fits: a pod's name has at most 253 characters."""
    return pod + (_SUFFIX if len(pod) + len(_SUFFIX) <= _LONGEST_FILE_NAME else _SHORT_SUFFIX)


class FolderSink:
    """``StatusSink`` of ``<manifests>/status/<namespace>/<pod>.json``, or ``.j`` for a pod whose name is too long.

    The folder belongs to Plumbline: the reconciler removes foreign files, and restores missing ones.
    """

    def __init__(self, manifests: Path) -> None:
        self._root = manifests / "status"

    async def put(self, status: PodStatus, before: PodStatus | None) -> bool:
        """See ``StatusSink.put``; *before* is ignored, the file is read."""
        return await self._write(PodName(status.pod.namespace, status.pod.name), status)

    async def withdraw(self, pod: PodName) -> bool:
        """See ``StatusSink.withdraw``."""
        return await self._write(pod, None)

    async def withdrawable(self) -> set[PodName]:
        """See ``StatusSink.withdrawable``."""
        return {pod for pod, _ in self._files()}

    async def watch(self) -> AsyncGenerator[ObservedStatus, None]:
        """See ``StatusSink.watch``; scans the folder every ``POLL_INTERVAL`` seconds."""
        known: dict[PodName, tuple[int, ...]] | None = None
        while True:
            now = await asyncio.to_thread(self._fingerprints)
            before = known or {}
            for pod in sorted(now.keys() | before.keys()):
                if now.get(pod) != before.get(pod):
                    yield await self.read(pod)
            if known is None:
                yield LISTED
            known = now
            await asyncio.sleep(POLL_INTERVAL)

    async def read_all(self) -> AsyncGenerator[ObservedStatus, None]:
        """See ``StatusSink.read_all``."""
        for pod in await self.withdrawable():
            yield await self.read(pod)

    async def read(self, pod: PodName) -> ObservedStatus:
        """See ``StatusSink.read``; a file that is missing or changed has no status."""
        require_pod_name(pod)
        try:
            content = await asyncio.to_thread(_content, self._path(pod))
        except OSError as error:
            raise PublishError(
                ErrorClass.SOURCE_UNAVAILABLE,
                f"pod {pod}: its network-status can't be read from {self._path(pod)}: {error.strerror}; "
                "check the folder",
            ) from error
        try:
            document = msgspec.json.decode(content or b"", type=_Document)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ObservedStatus(pod, "", None)
        text = document.annotations.get(ANNOTATION, "")
        whole = content == _document(pod, PodStatus(Pod(pod.namespace, pod.name, document.uid), text))
        return ObservedStatus(pod, document.uid, text) if whole else ObservedStatus(pod, "", None)

    async def ready(self) -> bool:
        """Return True: only a write shows whether the folder is writable."""
        return True

    async def close(self) -> None:
        """Do nothing: there are no connections."""

    def _path(self, pod: PodName) -> Path:
        return self._root / pod.namespace / _file_name(pod.name)

    def _files(self) -> Iterator[tuple[PodName, Path]]:
        """Yield the files that statuses can be in."""
        for path in self._root.glob("*/*"):
            if path.name == _file_name(path.stem) and not path.name.startswith("."):
                yield PodName(path.parent.name, path.stem), path

    def _fingerprints(self) -> dict[PodName, tuple[int, ...]]:
        """Return a fingerprint of each file."""
        found: dict[PodName, tuple[int, ...]] = {}
        for pod, path in self._files():
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                found[pod] = stat.st_mtime_ns, stat.st_size, stat.st_ino
        return found

    async def _write(self, pod: PodName, status: PodStatus | None) -> bool:
        require_pod_name(pod)
        path = self._path(pod)
        try:
            return await asyncio.to_thread(_write_if_changed, path, None if status is None else _document(pod, status))
        except OSError as error:
            raise PublishError(
                ErrorClass.SOURCE_UNAVAILABLE,
                f"pod {pod}: its network-status can't be written to {path}: {error.strerror}; check the folder",
            ) from error


def _write_if_changed(path: Path, content: bytes | None) -> bool:
    """Write *content* to the file at *path*, None: delete it; return True if that changed anything."""
    before = _content(path)
    if before == content:
        return False
    if content is None:
        path.unlink()
    else:
        _replace(path, content)
    return True


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _document(pod: PodName, status: PodStatus) -> bytes:
    body = {
        "namespace": pod.namespace,
        "name": pod.name,
        "uid": status.pod.uid,
        "annotations": {ANNOTATION: status.text},
    }
    return msgspec.json.encode(body) + b"\n"


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.stem}")  # each pod has one writer, and no pod has this name
    with open(os.open(fresh, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW, 0o644), "wb") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(content)
    fresh.replace(path)
