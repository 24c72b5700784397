"""Put what pods are attached to where it is read: beside the manifests, on a machine that has no API server.

Level-triggered: what should be there is computed from the projection each time and compared with what is there, so
that a crash, or a folder that could not be written to, costs a delay and nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import structlog

from events.fold import Sandbox
from reconciler.metrics import Metrics
from reconciler.status import ANNOTATION, PodName, PodStatus, StatusError, pod_status

log = structlog.get_logger(__name__)

_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_POD = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


class StatusFolder:
    """``<manifests>/status/<namespace>/<pod>.json``. The folder is Plumbline's: it removes what should not be there."""

    def __init__(self, manifests: Path) -> None:
        self._root = manifests / "status"

    def put(self, pod: PodName, status: PodStatus | None) -> bool:
        """Make the file of *pod* say *status*, or be gone; return whether that changed anything.

        Raises StatusError for a name that no pod can have, OSError.
        """
        path = self._path(pod)
        before = _content(path)
        after = None if status is None else _document(pod, status)
        if before == after:
            return False
        if after is None:
            path.unlink()
        else:
            _replace(path, after)
        return True

    def pods(self) -> set[PodName]:
        """Return the pods that have a file."""
        return {PodName(path.parent.name, path.stem) for path in self._root.glob("*/*.json")}

    def _path(self, pod: PodName) -> Path:
        if not (_fits(_NAMESPACE, pod.namespace, 63) and _fits(_POD, pod.name, 253)):
            raise StatusError(f"pod {pod}: that is not a name in the sense of RFC 1123, so its status is not published")
        return self._root / pod.namespace / f"{pod.name}.json"


class Publisher:
    """Brings the folder to what the projection says. Blocks: call it on the projection's thread."""

    def __init__(
        self, folder: StatusFolder, sandboxes_of: Callable[[PodName], Sequence[Sandbox]], metrics: Metrics
    ) -> None:
        self._folder = folder
        self._sandboxes_of = sandboxes_of
        self._metrics = metrics

    def publish(self, pods: Iterable[PodName]) -> set[PodName]:
        """Publish or withdraw the status of each of *pods*; return those that must be tried again."""
        return {pod for pod in sorted(pods) if not self._publish(pod)}

    def published(self) -> set[PodName]:
        """Return the pods that have a status now."""
        return self._folder.pods()

    def _publish(self, pod: PodName) -> bool:
        try:
            changed = self._folder.put(pod, pod_status(self._sandboxes_of(pod)))
        except StatusError as error:
            self._metrics.status_failed.inc()
            log.warning("status_failed", pod=str(pod), error=str(error))
            return True  # it would fail in the same way again
        except OSError as error:
            self._metrics.status_failed.inc()
            log.warning("status_failed", pod=str(pod), error=str(error), retried=True)
            return False
        if changed:
            self._metrics.status_published.inc()
            log.info("status_published", pod=str(pod))
        return True


def _fits(pattern: re.Pattern[str], name: str, longest: int) -> bool:
    return len(name) <= longest and pattern.fullmatch(name) is not None


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
    fresh = path.parent / ".writing"  # one writer, and a name that no pod has
    with open(os.open(fresh, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW, 0o644), "wb") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(content)
    fresh.replace(path)
