"""Resolve a pod's name, or the beginning of a container ID, to sandboxes.

Pure. A name stands for every pod that ever had it: operators often ask about a deleted pod.
"""

from __future__ import annotations

from events.schema import AttachPlanned, AttachRequested, ContainerId, DetachRequested, Event, Pod, SandboxAdopted

_LISTED = 20


class NotFoundError(LookupError):
    """No match, or several; the message lists the candidates."""


class Catalog:
    """The pods and sandboxes of the added events."""

    def __init__(self) -> None:
        self._pods: dict[str, set[ContainerId]] = {}
        self._sandboxes: set[ContainerId] = set()

    def add(self, event: Event) -> None:
        """Add one event."""
        if not event.sandbox:
            return
        self._sandboxes.add(event.sandbox)
        pod = pod_of(event)
        if pod is not None and pod.name:
            self._pods.setdefault(str(pod), set()).add(event.sandbox)

    def resolve(self, wanted: str) -> str:
        """Return ``namespace/name``, or the beginning of container IDs, for *wanted*. Raises NotFoundError.

        A name without namespace is searched in ``default``, then in all namespaces.
        """
        if "/" in wanted:
            found = [wanted] if wanted in self._pods else []
        elif f"default/{wanted}" in self._pods:
            found = [f"default/{wanted}"]
        else:
            found = sorted(pod for pod in self._pods if pod.partition("/")[2] == wanted)
        if len(found) > 1:
            raise NotFoundError(f"several pods are named {wanted}: {', '.join(found)}; add the namespace")
        if found:
            return found[0]
        if wanted and any(sandbox.startswith(wanted) for sandbox in self._sandboxes):
            return wanted
        raise NotFoundError(f"the ledger knows neither a pod nor a container ID {wanted}; {self._known()}")

    def sandboxes(self, resolved: str) -> frozenset[ContainerId]:
        """Return the sandboxes for a result of ``resolve``."""
        if resolved in self._pods:
            return frozenset(self._pods[resolved])
        return frozenset(sandbox for sandbox in self._sandboxes if sandbox.startswith(resolved))

    def _known(self) -> str:
        if not self._pods:
            return "it knows no pod"
        names = sorted(self._pods)
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return f"it knows the pods {', '.join(names[:_LISTED])}{more}"


def pod_of(event: Event) -> Pod | None:
    """Return the pod that *event* names, if any."""
    match event.data:
        case AttachRequested(pod=pod) | DetachRequested(pod=pod) | AttachPlanned(pod=pod):
            return pod
        case SandboxAdopted(plan=plan):
            return plan.pod
        case _:
            return None
