"""A real kube-apiserver with its etcd, on loopback and in memory, as envtest starts them."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from events.process.child_process import die_with_parent
from tests.support.kube.etcd import Etcd
from tests.support.kube.manifests import nad, write_kubeconfig
from tests.support.repository import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
NADS = "/apis/k8s.cni.cncf.io/v1/namespaces/{}/network-attachment-definitions"
PODS = "/api/v1/namespaces/{}/pods"

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_NAD_CRD = "network-attachment-definitions.k8s.cni.cncf.io"
_START = 60.0

ADMIN = "admin-token"
WORKER = "worker-token"
NOBODY = "nobody-token"
TOKENS = {ADMIN: ("admin", "system:masters"), WORKER: ("worker", ""), NOBODY: ("nobody", "")}
WORKER_RULES = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
    {
        "apiGroups": ["k8s.cni.cncf.io"],
        "resources": ["network-attachment-definitions"],
        "verbs": ["get", "list", "watch"],
    },
]


def binaries() -> Path:
    """Return the folder with kube-apiserver and etcd; skip the test where there is none."""
    folder = Path(os.environ.get("KUBEBUILDER_ASSETS") or "/usr/local/kubebuilder/bin")
    for name in ("etcd", "kube-apiserver"):
        if not (folder / name).exists():
            pytest.skip(
                f"{folder}/{name} is missing: set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver, "
                f"for example by setup-envtest"
            )
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates of the kube-apiserver, is not installed")
    return folder


class RefusedError(Exception):
    """The API server refused what a test asked for."""


class KubeServer:
    """etcd, and a kube-apiserver that can be killed and started again at the same address."""

    def __init__(self) -> None:
        self._binaries = binaries()
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="plumbline-kube-", dir=memory if memory.is_dir() else None))
        self._port, etcd_port, self._peer_port = _free_ports(3)
        self.etcd = Etcd(etcd_port)
        self._etcd: subprocess.Popen[bytes] | None = None
        self._api: subprocess.Popen[bytes] | None = None
        self._connection: http.client.HTTPSConnection | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    # --- processes ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start both, with the CRD and the worker's role."""
        self._certificates()
        self._etcd = self._run(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self.etcd.url}",
            f"--advertise-client-urls={self.etcd.url}",
            f"--listen-peer-urls=http://127.0.0.1:{self._peer_port}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{self._peer_port}",
            f"--initial-cluster=default=http://127.0.0.1:{self._peer_port}",
        )
        self.start_api()
        self.await_api()
        self.install_crd()
        self.grant_worker()

    def start_api(self, tokens: dict[str, tuple[str, str]] = TOKENS) -> None:
        """Start the API server; it takes *tokens*, each for a user in groups, and no others. ``await_api`` is next.

        From the main thread only: the process ends with the thread that starts it.
        """
        lines = [f'{token},{user},{user},"{groups}"\n' for token, (user, groups) in tokens.items()]
        (self.folder / "tokens.csv").write_text("".join(lines))
        self._api = self._run(
            "kube-apiserver",
            f"--etcd-servers={self.etcd.url}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--tls-cert-file={self.folder / 'server.crt'}",
            f"--tls-private-key-file={self.folder / 'server.key'}",
            f"--client-ca-file={self.ca}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            f"--service-account-key-file={self.folder / 'server.crt'}",
            f"--service-account-signing-key-file={self.folder / 'server.key'}",
            f"--service-account-issuer={self.url}",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--allow-privileged",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
        )

    def await_api(self) -> None:
        """Return when the API server answers."""
        deadline = time.monotonic() + _START
        while True:
            assert self._api is not None
            assert self._api.poll() is None, f"kube-apiserver ended:\n{self._tail()}"
            assert time.monotonic() < deadline, f"kube-apiserver is not ready:\n{self._tail()}"
            try:
                self.ask("GET", "/readyz")
                self.ask("GET", "/api/v1/namespaces/default")
            except (OSError, RefusedError, http.client.HTTPException):
                time.sleep(0.05)
            else:
                return

    def kill_api(self) -> None:
        """Kill the API server as a crash does."""
        assert self._api is not None
        self._api.kill()
        self._api.wait()
        self._hang_up()

    def runs(self) -> bool:
        """Return whether the API server was started and has not ended."""
        return self._api is not None and self._api.poll() is None

    def stop(self) -> None:
        """End both and leave nothing."""
        self._hang_up()
        for process in (self._api, self._etcd):
            if process is not None:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [str(self._binaries / name), *arguments]
            # A test's threads hold no lock that the few lines between fork and exec would need.
            return subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent())  # noqa: PLW1509

    def _tail(self) -> str:
        return (self.folder / "kube-apiserver.log").read_text(errors="replace")[-2000:]

    def _certificates(self) -> None:
        names = "subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost"
        self._certificate("ca", "/CN=test authority", "basicConstraints=critical,CA:TRUE")
        self._certificate("server", "/CN=kube-apiserver", names, "-CA", str(self.ca), "-CAkey", self._file("ca.key"))
        self._certificate(
            "client", "/CN=worker", "extendedKeyUsage=clientAuth", "-CA", str(self.ca), "-CAkey", self._file("ca.key")
        )

    def _certificate(self, name: str, subject: str, extension: str, *arguments: str) -> None:
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", subject, "-addext", extension, *arguments]
        command += ["-keyout", self._file(f"{name}.key"), "-out", self._file(f"{name}.crt")]
        subprocess.run(command, check=True, capture_output=True)

    def _file(self, name: str) -> str:
        return str(self.folder / name)

    # --- the API, as the administrator -------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: object = None, content_type: str = "application/json") -> Any:
        """Return what the API server answers to the administrator. Raises RefusedError and OSError."""
        try:
            status, content = self._exchange(method, path, body, content_type)
        except (OSError, http.client.HTTPException):
            # The server may have closed the connection, or have been another one when it was made.
            self._hang_up()
            status, content = self._exchange(method, path, body, content_type)
        if status >= 400:
            raise RefusedError(f"{method} {path}: {status} {content.decode(errors='replace')}")
        return json.loads(content) if content.startswith(b"{") else content

    def _exchange(self, method: str, path: str, body: object, content_type: str) -> tuple[int, bytes]:
        if self._connection is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # by the rules of Kubernetes, which are not strict
            context.load_verify_locations(self.ca)
            self._connection = http.client.HTTPSConnection("127.0.0.1", self._port, context=context, timeout=30)
        headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": content_type}
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = self._connection.getresponse()
        return response.status, response.read()

    def create_pod(self, namespace: str, name: str, node: str, annotations: dict[str, str] | None = None) -> str:
        """Create the pod and return its UID."""
        metadata = {"name": name, "annotations": annotations or {}}
        spec = {"nodeName": node, "containers": [{"name": "main", "image": "none"}]}
        pod = self.ask("POST", PODS.format(namespace), {"metadata": metadata, "spec": spec})
        return pod["metadata"]["uid"]

    def delete_pod(self, namespace: str, name: str) -> None:
        """Delete the pod as the kubelet does when its containers have ended."""
        self.ask("DELETE", f"{PODS.format(namespace)}/{name}?gracePeriodSeconds=0")

    def annotate_pod(self, namespace: str, name: str, annotations: dict[str, str]) -> None:
        self._merge(f"{PODS.format(namespace)}/{name}", {"metadata": {"annotations": annotations}})

    def create_nad(
        self, namespace: str, name: str, config: str | None = "", annotations: dict[str, str] | None = None
    ) -> None:
        """Create the NAD; a *config* of None leaves out ``spec``."""
        self.ask("POST", NADS.format(namespace), nad(namespace, name, config, annotations))

    def change_nad(self, namespace: str, name: str, config: str) -> None:
        self._merge(f"{NADS.format(namespace)}/{name}", {"spec": {"config": config}})

    def delete_nad(self, namespace: str, name: str) -> None:
        self.ask("DELETE", f"{NADS.format(namespace)}/{name}")

    def create_namespace(self, name: str) -> None:
        self.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    def install_crd(self) -> None:
        """Install the kind, and return when it is served."""
        crd = yaml.safe_load((DEPLOY / "crd" / "network-attachment-definition.yaml").read_text())
        self.ask("POST", _CRDS, crd)
        deadline = time.monotonic() + _START
        while not self._serves_nads():
            assert time.monotonic() < deadline, "the CRD is not served"
            time.sleep(0.02)

    def has_crd(self) -> bool:
        return any(crd["metadata"]["name"] == _NAD_CRD for crd in self.ask("GET", _CRDS)["items"])

    def uninstall_crd(self) -> None:
        """Remove the kind with all its objects, and return when it is gone."""
        self.ask("DELETE", f"{_CRDS}/{_NAD_CRD}")
        deadline = time.monotonic() + _START
        while self.has_crd() or self._serves_nads():
            assert time.monotonic() < deadline, "the CRD is still there"
            time.sleep(0.02)

    def _serves_nads(self) -> bool:
        try:
            self.ask("GET", NADS.format("default"))
        except RefusedError:
            return False
        return True

    def grant_worker(self) -> None:
        """Let the user ``worker`` do what the worker does."""
        api = "/apis/rbac.authorization.k8s.io/v1"
        role = {"metadata": {"name": "worker"}, "rules": WORKER_RULES}
        self.ask("POST", f"{api}/clusterroles", role)
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "worker"}
        subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "worker"}]
        self.ask(
            "POST",
            f"{api}/clusterrolebindings",
            {"metadata": {"name": "worker"}, "roleRef": reference, "subjects": subjects},
        )

    def kubeconfig(self, path: Path, *, server: str = "", **user: str) -> Path:
        """Write a kubeconfig whose user has the keys *user*, with ``_`` for ``-``, and return its path."""
        cluster = {"server": server or self.url, "certificate-authority": str(self.ca)}
        return write_kubeconfig(path, cluster, {key.replace("_", "-"): value for key, value in user.items()})

    def _merge(self, path: str, patch: object) -> None:
        self.ask("PATCH", path, patch, "application/merge-patch+json")

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
