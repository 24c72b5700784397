"""Write network-statuses where Kubernetes clients read them: to the pod's annotation.

The sink sends one merge patch of ``pods/status``: the only subresource with writable annotations that needs no right to
change the pod itself (RBAC: ``patch`` on ``pods/status``). The UID in the patch makes the API server refuse it for
another pod of the same name. A resource version is unnecessary: Plumbline is the only owner of the key.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import aiohttp
import msgspec
import yaml
from kubernetes_asyncio import client, config

from events.process.settings import SettingsError
from events.schema import ErrorClass
from reconciler.projection.fold.published import PodName
from reconciler.status.kubernetes.annotation_watch import AnnotationWatch, WatchError
from reconciler.status.sink import ObservedStatus, PublishError, require_pod_name
from reconciler.status.text import ANNOTATION, PodStatus

_TIMEOUT = 10.0
_PING_TIMEOUT = 2.0
_IDLE = 5.0
"""Seconds of idleness after which the sink pings the server to keep a connection open. A new connection costs a TLS
handshake, and aiohttp closes one after 15 s."""
_MAX_RETRY_AFTER = 60.0
_RETRYABLE = frozenset({401, 403, 408, 409, 425, 429})
_NO_POD = (
    "reconciler.kubernetes uses the service account of a pod, and this is no pod: run the command in one "
    "(kubectl -n kube-system exec POD -- plumbline verify), or set reconciler.kubernetes.kubeconfig"
)
_UNREACHABLE = (aiohttp.ClientError, TimeoutError, OSError, config.ConfigException)
_UNUSABLE = (config.ConfigException, yaml.YAMLError, ValueError, TypeError, AttributeError)
"""Errors of the library for a malformed kubeconfig."""
_STALE = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
"""Errors of an idle connection that the server has closed."""


class _Status(msgspec.Struct):
    message: str = ""


class AnnotationSink:
    """``StatusSink`` at an API server. Use ``connect``."""

    def __init__(self, configuration: client.Configuration, node: str = "") -> None:
        self._host = configuration.host
        self.api = client.ApiClient(configuration)
        """The client, for other writers to the same API server."""
        # Any: the library has no types for raw responses and content types.
        self._pods: Any = client.CoreV1Api(self.api)
        self._version: Any = client.VersionApi(self.api)
        self._watch = AnnotationWatch(self.api, node)
        self._response_at = float("-inf")
        self._healthy = False

    @classmethod
    async def connect(cls, kubeconfig: str, node: str = "") -> AnnotationSink:
        """Return a sink for the server in *kubeconfig*; empty: for the service account, whose token is re-read.

        It reads the statuses of pods on *node*; empty: of all pods. Raises SettingsError.
        """
        if not kubeconfig and "KUBERNETES_SERVICE_HOST" not in os.environ:
            raise SettingsError(_NO_POD)
        configuration = client.Configuration()
        # From Python 3.13 on the strict rules refuse the authorities of many clusters, which Kubernetes accepts.
        configuration.disable_strict_ssl_verification = True
        try:
            if kubeconfig:
                await config.load_kube_config(
                    config_file=kubeconfig, client_configuration=configuration, persist_config=False
                )
            else:
                config.load_incluster_config(client_configuration=configuration)
            return cls(configuration, node)
        except (*_UNUSABLE, OSError) as error:
            where = f"kubeconfig {kubeconfig}" if kubeconfig else "service account of this pod"
            reason = " ".join(str(error).split())
            raise SettingsError(f"reconciler.kubernetes: the {where} can't be used: {reason}") from error

    async def put(self, status: PodStatus, before: PodStatus | None) -> bool:
        """See ``StatusSink.put``. If *before* equals *status*, no request is sent."""
        if status == before:
            return False
        require_pod_name(PodName(status.pod.namespace, status.pod.name))
        metadata: dict[str, Any] = {"annotations": {ANNOTATION: status.text}}
        if status.pod.uid:
            metadata["uid"] = status.pod.uid
        try:
            await self._patch(status, {"metadata": metadata})
        except _UNREACHABLE as error:
            self._record_response(healthy=False)
            raise PublishError(
                ErrorClass.SOURCE_UNAVAILABLE,
                f"pod {status.pod}: its network-status can't be written to the API server {self._host} "
                f"({str(error) or type(error).__name__}); Plumbline retries",
            ) from error
        return True

    async def withdraw(self, pod: PodName) -> bool:
        """Do nothing: the annotation is deleted with the pod."""
        return False

    async def withdrawable(self) -> set[PodName]:
        """Return no pods: nothing is ever withdrawn."""
        return set()

    def watch(self) -> AsyncGenerator[ObservedStatus, None]:
        """See ``StatusSink.watch``."""
        return self._watch.watch()

    async def read_all(self) -> AsyncGenerator[ObservedStatus, None]:
        """See ``StatusSink.read_all``."""
        try:
            async with aclosing(self._watch.read_all()) as listed:
                async for found, _ in listed:
                    if found is not None:
                        yield found
        except (*_UNREACHABLE, WatchError, msgspec.MsgspecError) as error:
            raise self._read_error(error) from error

    async def read(self, pod: PodName) -> ObservedStatus | None:
        """See ``StatusSink.read``."""
        require_pod_name(pod)
        try:
            return await self._watch.read(pod)
        except (*_UNREACHABLE, WatchError, msgspec.MsgspecError) as error:
            raise self._read_error(error) from error

    async def ready(self) -> bool:
        """See ``StatusSink.ready``. Returns the state at the last response; if that is old, pings the server."""
        if asyncio.get_running_loop().time() - self._response_at > _IDLE:
            try:
                answer = await self._version.get_code(_preload_content=False, _request_timeout=_PING_TIMEOUT)
                await answer.read()
                self._record_response(healthy=answer.status < 500)
            except _UNREACHABLE:
                self._healthy = False  # the time is not updated, so the next call pings again
        return self._healthy

    async def close(self) -> None:
        """Close the connections."""
        await self.api.close()

    def _read_error(self, error: Exception) -> PublishError:
        return PublishError(
            ErrorClass.SOURCE_UNAVAILABLE,
            f"the API server {self._host} does not return the network-status of pods "
            f"({str(error) or type(error).__name__})",
            retry_after=error.retry_after if isinstance(error, WatchError) else None,
        )

    async def _patch(self, status: PodStatus, body: object) -> None:
        try:
            answer = await self._send(status, body)
        except _STALE:
            answer = await self._send(status, body)
        content = await answer.read()  # reading the body releases the connection
        self._record_response(healthy=answer.status < 500)
        if answer.status >= 300:
            raise _refusal(status, answer, content)

    async def _send(self, status: PodStatus, body: object) -> aiohttp.ClientResponse:
        # A raw response: decoding a pod object would take longer than the request.
        return await self._pods.patch_namespaced_pod_status(
            status.pod.name,
            status.pod.namespace,
            body,
            _content_type="application/merge-patch+json",
            _preload_content=False,
            _request_timeout=_TIMEOUT,
        )

    def _record_response(self, *, healthy: bool) -> None:
        self._response_at = asyncio.get_running_loop().time()
        self._healthy = healthy


def _refusal(status: PodStatus, answer: aiohttp.ClientResponse, content: bytes) -> PublishError:
    """Return the error for an unsuccessful *answer* (Kubernetes API conventions, "HTTP Status codes")."""
    reason = _message(content) or answer.reason or "no reason"
    code = answer.status
    if code == 404:
        return PublishError(
            ErrorClass.POD_NOT_FOUND,
            f"pod {status.pod} is gone, so its network-status is not published: {reason}",
            final=True,
        )
    if code in (409, 422) and "uid" in reason.lower():
        return PublishError(
            ErrorClass.POD_CHANGED,
            f"pod {status.pod} was replaced, so the network-status of UID {status.pod.uid} is not published: {reason}",
            final=True,
        )
    final = 400 <= code < 500 and code not in _RETRYABLE
    remedy = "grant the reconciler patch on pods/status" if code == 403 else "read the log of the API server"
    return PublishError(
        ErrorClass.API_REFUSED,
        f"pod {status.pod}: the API server refuses its network-status with {code}: {reason}; {remedy}",
        final=final,
        retry_after=_seconds(answer.headers.get("Retry-After", "")),
    )


def _message(content: bytes) -> str:
    try:
        return msgspec.json.decode(content, type=_Status).message
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def _seconds(retry_after: str) -> float | None:
    """Return the seconds of a Retry-After header; None for a date or no header (RFC 9110, section 10.2.3)."""
    return min(_MAX_RETRY_AFTER, float(retry_after)) if retry_after.isdecimal() else None
