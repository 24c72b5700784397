"""A folder of Kubernetes manifests as the cluster: for one machine, and for tests without an API server.

Each look-up reads the current folder, so there is no watch that could lag. Only changed files are read again. An
unusable file affects its own objects only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import structlog
import yaml

from events.process.decoding import convert
from nodeworker.planning.cluster.source import SourceUnavailableError
from nodeworker.planning.resolve.objects import CONFIG_SOURCE, Nad, PodObject
from nodeworker.plugins.spec.names import decode_json

NAD_API = "k8s.cni.cncf.io/v1"

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
STATUS = "status"
"""Folder in which the worker writes the status of pods; it has no manifests."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_UNREADABLE = (OSError, yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
"""What reading a file may raise; PyYAML does not wrap the errors of its constructors (``!!bool maybe``)."""

Found = TypeVar("Found", Nad, PodObject)
_Object = Nad | PodObject
_KINDS: Mapping[tuple[object, object], type[_Object]] = {
    ("v1", "Pod"): PodObject,
    (NAD_API, "NetworkAttachmentDefinition"): Nad,
}


class _Metadata(msgspec.Struct):
    name: str
    namespace: str = "default"
    uid: str = ""
    annotations: dict[str, str] | None = None


class _Pod(msgspec.Struct):
    metadata: _Metadata


class _Nad(msgspec.Struct):
    metadata: _Metadata
    spec: Any = None


class _Identity(msgspec.Struct):
    name: str
    namespace: str = "default"


class _Identified(msgspec.Struct):
    kind: str
    metadata: _Identity


class _Unusable(NamedTuple):
    """An object that is there and can't be used."""

    of_type: type[_Object]
    namespace: str
    name: str
    problem: str


_FRESH = 0.01
"""Seconds after the look-up of a pod in which files are not read again: an ADD then looks up the pod's networks."""
_QUICK = 0.001
"""Seconds for which a scan of the folder may block the event loop; a thread switch alone costs half of them."""


class _Signature(NamedTuple):
    """Changes whenever the file does."""

    mtime_ns: int
    size: int
    inode: int


class _File(NamedTuple):
    signature: _Signature
    objects: tuple[_Object | _Unusable, ...]


class Manifests:
    """``Source`` from the YAML and JSON files under *folder*, except hidden ones and those in its ``status`` folder.

    If an object is in several files, the last of them by path counts.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, _File] = {}
        self._objects: dict[tuple[type[_Object], str, str], _Object | _Unusable] = {}
        self._looked_at = float("-inf")
        self._quick = False
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
        # One thread: what may take long stays off the event loop, and look-ups follow one another.
        # One thread: slow reads do not block the event loop, and look-ups are serial.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="manifests")

    async def pod(self, namespace: str, name: str, uid: str = "") -> PodObject | None:
        """Return the pod *namespace*/*name*, whatever its *uid*: a folder has one incarnation.

        Raises SourceUnavailableError if the folder can't be read, or the pod is there and unusable.
        """
        began = time.monotonic()
        found = await self._look_up(PodObject, namespace, name)
        self._looked_at = began
        return found

    async def nad(self, namespace: str, name: str) -> Nad | None:
        """Return the NAD *namespace*/*name*. Raises SourceUnavailableError as ``pod`` does."""
        if time.monotonic() - self._looked_at < _FRESH:
            return self._get(Nad, namespace, name)
        return await self._look_up(Nad, namespace, name)

    @property
    def claims(self) -> None:
        """None: no component allocates devices to the pods of a folder."""
        return None

    async def run(self) -> None:
        """Do nothing until cancelled: each look-up reads the folder."""
        await asyncio.get_running_loop().create_future()

    async def ready(self, seconds: float) -> bool:
        """Return true at once."""
        return True

    def close(self) -> None:
        """Stop the thread after the current look-ups."""
        self._thread.shutdown()

    async def _look_up(self, kind: type[Found], namespace: str, name: str) -> Found | None:
        if self._quick and self._is_current(self._signatures()):
            return self._get(kind, namespace, name)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._find, kind, namespace, name)

    def _find(self, kind: type[Found], namespace: str, name: str) -> Found | None:
        self._refresh()
        return self._get(kind, namespace, name)

    def _get(self, kind: type[Found], namespace: str, name: str) -> Found | None:
        found = self._objects.get((kind, namespace, name))
        if isinstance(found, _Unusable):
            raise SourceUnavailableError(found.problem)
        return found if isinstance(found, kind) else None

    def _refresh(self) -> None:
        """Read changed files again."""
        signatures = self._signatures()
        if self._is_current(signatures):
            return
        files: dict[str, _File] = {}
        for path, signature in signatures.items():
            known = self._files.get(path)
            if known is None or known.signature != signature:
                known = _File(signature, tuple(self._read(path)))
            files[path] = known
        self._objects = {_key(each): each for file in files.values() for each in file.objects}
        self._files = files  # last: it decides whether the objects are current

    def _signatures(self) -> dict[str, _Signature]:
        """Return the signatures of the files in the folder, by path. Raises SourceUnavailableError."""
        began = time.monotonic()
        try:
            return dict(sorted(_scan(self._folder)))
        except OSError as error:
            raise SourceUnavailableError(f"the folder {self._folder} can't be read: {error.strerror}") from error
        finally:
            self._quick = time.monotonic() - began < _QUICK

    def _is_current(self, signatures: dict[str, _Signature]) -> bool:
        return signatures == {path: file.signature for path, file in self._files.items()}

    def _read(self, path: str) -> Iterator[_Object | _Unusable]:
        """Yield the objects in the file *path*; log once what is unusable, and continue."""
        try:
            manifests = list(_flat(_documents(self._folder / path)))
        except _UNREADABLE as error:
            self._log.warning("manifest_unusable", file=path, error=" ".join(str(error).split()))
            return
        for index, manifest in enumerate(manifests, 1):
            try:
                yield from _object(manifest)
            except msgspec.ValidationError as error:
                problem = str(error)
                self._log.warning("manifest_object_unusable", file=path, object=index, error=problem)
                yield from _unusable(manifest, problem, self._folder / path)


def _scan(folder: Path) -> Iterator[tuple[str, _Signature]]:
    """Yield path, relative to *folder*, and signature of each manifest. Raises OSError if *folder* can't be read."""

    def fail(error: OSError) -> None:
        # A subfolder that vanished or can't be read affects its own manifests only.
        if error.filename == str(folder):
            raise error

    for top, folders, names in os.walk(folder, onerror=fail):
        at_top = top == str(folder)
        folders[:] = [name for name in folders if not name.startswith(".") and not (at_top and name == STATUS)]
        for name in names:
            if name.startswith(".") or os.path.splitext(name)[1] not in SUFFIXES:
                continue
            path = os.path.join(top, name)
            try:
                stat = os.stat(path)
            except FileNotFoundError:
                continue
            yield os.path.relpath(path, folder), _Signature(stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _documents(path: Path) -> list[Any]:
    """Return the documents in the file *path*. Raises one of ``_UNREADABLE``."""
    text = path.read_text(encoding="utf-8")
    # YAML accepts most JSON, but not JSON that is indented with tabs.
    return [decode_json(text)] if path.suffix == ".json" else list(yaml.load_all(text, Loader=_LOADER))


def _flat(documents: list[Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the objects in *documents*, including those in lists."""
    for document in documents:
        if not isinstance(document, Mapping):
            continue
        if document.get("kind") == "List" and isinstance(document.get("items"), list):
            yield from _flat(document["items"])
        else:
            yield document


def _object(manifest: Mapping[str, Any]) -> Iterator[_Object]:
    """Yield *manifest* as a pod or NAD; nothing for other kinds. Raises msgspec.ValidationError."""
    kind = _KINDS.get((manifest.get("apiVersion"), manifest.get("kind")))
    if kind is PodObject:
        about = convert(manifest, _Pod).metadata
        annotations = about.annotations or {}
        static = annotations.get(CONFIG_SOURCE, "api") != "api"
        yield PodObject(about.namespace, about.name, about.uid, annotations, static)
    elif kind is Nad:
        nad = convert(manifest, _Nad)
        yield Nad.of(nad.metadata.namespace, nad.metadata.name, nad.spec, nad.metadata.annotations or {})


def _unusable(manifest: Mapping[str, Any], problem: str, file: Path) -> Iterator[_Unusable]:
    """Yield *manifest*, which has a *problem*; nothing for other kinds, and without a name that can be looked up."""
    with contextlib.suppress(msgspec.ValidationError):
        found = convert(manifest, _Identified)
        of_type = _KINDS.get((manifest.get("apiVersion"), found.kind))
        if of_type is not None:
            namespace, name = found.metadata.namespace, found.metadata.name
            sentence = f"{found.kind} {namespace}/{name} in {file} can't be used: {problem}; correct it"
            yield _Unusable(of_type, namespace, name, sentence)


def _key(found: _Object | _Unusable) -> tuple[type[_Object], str, str]:
    return found.of_type if isinstance(found, _Unusable) else type(found), found.namespace, found.name
