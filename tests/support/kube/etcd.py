"""The API server's storage by itself: for many objects at once, and for what happens while no API server looks."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterable
from typing import Any

_NADS = "/registry/k8s.cni.cncf.io/network-attachment-definitions"
_TRANSACTION = 100


class Etcd:
    """The etcd at *port*, through its JSON gateway.

    What one call changes has one revision, which the API server's own changes never share: a watch that is under way
    may miss part of it. So it is for what is listed afterwards.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.url = f"http://127.0.0.1:{port}"

    def store_nads(self, nads: Iterable[dict[str, Any]]) -> None:
        """Put *nads* where the API server keeps them."""
        puts = [{"requestPut": {"key": _b64(_place(nad)), "value": _b64(json.dumps(_stored(nad)))}} for nad in nads]
        for first in range(0, len(puts), _TRANSACTION):
            self._ask("txn", {"success": puts[first : first + _TRANSACTION]})

    def forget_nads(self, namespace: str) -> None:
        """Delete all NADs of *namespace*."""
        prefix = f"{_NADS}/{namespace}/"
        self._ask("deleterange", {"key": _b64(prefix), "range_end": _b64(prefix[:-1] + "0")})

    def writes(self, kind: str, namespace: str, name: str) -> int:
        """Return how often the object of the plural *kind* was written, the first time included."""
        (found,) = self._ask("range", {"key": _b64(f"/registry/{kind}/{namespace}/{name}")})["kvs"]
        return int(found["version"])

    def _ask(self, call: str, body: object) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("POST", f"/v3/kv/{call}", json.dumps(body))
            response = connection.getresponse()
            content = response.read()
            assert response.status == 200, content
            return json.loads(content)
        finally:
            connection.close()


def _place(nad: dict[str, Any]) -> str:
    return f"{_NADS}/{nad['metadata']['namespace']}/{nad['metadata']['name']}"


def _stored(nad: dict[str, Any]) -> dict[str, Any]:
    name = nad["metadata"]["name"]
    about = {"uid": f"uid-of-{name}", "creationTimestamp": "2024-01-01T00:00:00Z", "generation": 1}
    return {**nad, "metadata": {**nad["metadata"], **about}}


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
