"""The manifests against a real API server: it accepts all of them, and they grant no more rights than are used."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

from events.process.settings import load
from nodeworker.settings import WorkerSettings
from reconciler.settings import ReconcilerSettings
from tests.support.kube.server import ADMIN, DEPLOY, KubeServer, binaries

Kubectl: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]

ACCOUNT = "system:serviceaccount:kube-system:plumbline"
HUBS = ("kubernetes/with-hub", "kubernetes/with-hub-tls")
KUSTOMIZATIONS = ("kubernetes/base", "kubernetes/replace-multus", "crd", *HUBS)
NADS = "network-attachment-definitions.k8s.cni.cncf.io"

ALLOWED = {
    "pods": {"get", "list", "watch"},
    "pods/status": {"patch"},
    NADS: {"get", "list", "watch"},
    "resourceclaims.resource.k8s.io": {"get", "list"},
    "resourceslices.resource.k8s.io": {"get", "list"},
    "events": {"create", "patch"},
    "events.events.k8s.io": {"create", "patch"},
}
DENIED = (
    "secrets",
    "configmaps",
    "nodes",
    "namespaces",
    "serviceaccounts",
    "deployments.apps",
    "daemonsets.apps",
    "pods/exec",
    "pods/log",
    "pods/ephemeralcontainers",
    "nodes/proxy",
    "customresourcedefinitions.apiextensions.k8s.io",
    "clusterroles.rbac.authorization.k8s.io",
)
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")


def kubectl_binary() -> str:
    beside = Path(os.environ.get("KUBEBUILDER_ASSETS") or "/usr/local/kubebuilder/bin") / "kubectl"
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl is missing: set KUBEBUILDER_ASSETS to a folder that has it, for example by setup-envtest")
    return found


def rendered(kustomization: str) -> list[dict[str, Any]]:
    """Return the manifests as kubectl builds them, without a server."""
    command = [kubectl_binary(), "kustomize", str(DEPLOY / kustomization)]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def pick(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


@pytest.fixture(scope="module")
def kubectl(kube: KubeServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    binaries()
    folder = tmp_path_factory.mktemp("kubectl")
    kubeconfig = kube.kubeconfig(folder / "config", token=ADMIN)
    binary = kubectl_binary()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [binary, "--kubeconfig", str(kubeconfig), "--cache-dir", str(folder / "cache"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    yield run
    run("delete", "-k", str(DEPLOY / "kubernetes/base"), "--wait=false")


def contains(whole: Any, part: Any) -> bool:
    """Return True if *whole* contains *part*: the server adds defaults and drops unknown keys."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and contains(whole[key], part[key]) for key in part)
    if isinstance(part, list):
        return isinstance(whole, list) and len(whole) == len(part) and all(map(contains, whole, part))
    return whole == part


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)
def test_the_api_server_accepts_every_manifest(kubectl: Kubectl, kustomization: str) -> None:
    done = kubectl("apply", "--validate=strict", "-k", str(DEPLOY / kustomization))
    assert done.returncode == 0, done.stderr
    for manifest in rendered(kustomization):
        namespace = manifest["metadata"].get("namespace")
        name = f"{manifest['kind']}/{manifest['metadata']['name']}"
        got = kubectl("get", name, "-o", "yaml", *(["-n", namespace] if namespace else []))
        assert got.returncode == 0, got.stderr
        assert contains(yaml.safe_load(got.stdout), manifest), name


def test_removing_plumbline_removes_no_network() -> None:
    for kustomization in ("kubernetes/base", "kubernetes/replace-multus"):
        assert not [m for m in rendered(kustomization) if m["kind"] == "CustomResourceDefinition"]


def may(kube: KubeServer, verb: str, resource: str) -> bool:
    """Ask the server, like ``kubectl auth can-i``, also about kinds that it does not have."""
    name, _, group = resource.partition(".")
    name, _, subresource = name.partition("/")
    what = {"verb": verb, "group": group, "resource": name, "subresource": subresource, "namespace": "elsewhere"}
    groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"]
    body = {"spec": {"user": ACCOUNT, "groups": groups, "resourceAttributes": what}}
    return kube.ask("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)["status"]["allowed"]


def test_the_account_has_exactly_the_rights_in_use(kubectl: Kubectl, kube: KubeServer) -> None:
    assert kubectl("apply", "-k", str(DEPLOY / "kubernetes/base")).returncode == 0
    granted = {resource: {verb for verb in VERBS if may(kube, verb, resource)} for resource in (*ALLOWED, *DENIED)}
    assert granted == {**ALLOWED, **{resource: set() for resource in DENIED}}


def test_the_pods_use_the_account(kubectl: Kubectl) -> None:
    assert kubectl("apply", "-k", str(DEPLOY / "kubernetes/base")).returncode == 0
    spec = pick(rendered("kubernetes/base"), "DaemonSet")["spec"]["template"]["spec"]
    account = f"system:serviceaccount:kube-system:{spec['serviceAccountName']}"
    assert kubectl("auth", "can-i", "watch", "pods", "--as", account, "-A").stdout.strip() == "yes"
    assert kubectl("auth", "can-i", "get", "secrets", "--as", account, "-A").stdout.strip() == "no"


def test_another_account_of_the_namespace_has_no_rights(kubectl: Kubectl) -> None:
    other = "system:serviceaccount:kube-system:default"
    assert kubectl("auth", "can-i", "list", "pods", "--as", other).stdout.strip() == "no"


@pytest.mark.parametrize("kustomization", KUSTOMIZATIONS[:2])
def test_the_configuration_is_valid(kustomization: str, tmp_path: Path) -> None:
    data = pick(rendered(kustomization), "ConfigMap")["data"]
    path = tmp_path / "plumbline.json"
    path.write_text(data["plumbline.json"])
    settings = load(path, WorkerSettings)
    assert settings.worker.kubernetes is not None
    assert settings.install is not None
    assert settings.install.replace_multus is (kustomization == "kubernetes/replace-multus")
    load(path, ReconcilerSettings)


def test_files_of_plumbline_outlive_its_pod() -> None:
    """Every folder in the configuration is on the node."""
    spec = pick(rendered("kubernetes/base"), "DaemonSet")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume.get("hostPath", {}).get("path") for volume in spec["volumes"]}
    (container,) = spec["containers"]
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    settings = WorkerSettings()
    for folder in (settings.state_dir, "/opt/cni/bin", "/etc/cni/net.d", "/run", "/run/netns"):
        assert mounted[folder] == folder
    assert Path(settings.run_dir).parent == Path("/run")
    entered = {m["mountPath"] for m in container["volumeMounts"] if m.get("mountPropagation") == "HostToContainer"}
    assert entered >= {"/run/netns", "/var/run/netns"}


def pod_spec(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return pick(manifests, kind)["spec"]["template"]["spec"]


@pytest.mark.parametrize("kustomization", HUBS)
def test_with_a_hub_every_process_has_only_its_own_password(kustomization: str, tmp_path: Path) -> None:
    manifests = rendered(kustomization)
    path = tmp_path / "plumbline.json"
    path.write_text(next(m["data"]["plumbline.json"] for m in manifests if "plumbline.json" in m.get("data", {})))
    hub = load(path, WorkerSettings).hub
    assert hub is not None
    assert hub.url.count("://") == hub.replicas == pick(manifests, "StatefulSet")["spec"]["replicas"] == 3
    mounts: list[dict[str, Any]] = []
    for kind in ("DaemonSet", "Deployment"):
        (container,) = pick(manifests, kind)["spec"]["template"]["spec"]["containers"]
        mounts += [mount for mount in container["volumeMounts"] if mount["mountPath"] == hub.token_file]
        (name,) = (each for each in container["env"] if each["name"] == "PLUMBLINE_NODE")
        assert name.get("value") == (None if kind == "DaemonSet" else "reconciler")
    assert [mount.get("subPathExpr") or mount.get("subPath") for mount in mounts] == ["$(PLUMBLINE_NODE)", "reconciler"]
    assert hub.user == "{node}"


@pytest.mark.parametrize("kustomization", HUBS)
def test_no_secret_of_a_hub_is_world_readable(kustomization: str) -> None:
    manifests = rendered(kustomization)
    for kind in ("DaemonSet", "Deployment", "StatefulSet"):
        secrets = [volume["secret"] for volume in pod_spec(manifests, kind)["volumes"] if "secret" in volume]
        assert secrets
        assert not [secret for secret in secrets if secret.get("defaultMode", 0o644) & 0o007]


def test_with_tls_all_have_the_ca_and_only_servers_have_their_key(tmp_path: Path) -> None:
    manifests = rendered("kubernetes/with-hub-tls")
    path = tmp_path / "plumbline.json"
    path.write_text(next(m["data"]["plumbline.json"] for m in manifests if "plumbline.json" in m.get("data", {})))
    hub = load(path, WorkerSettings).hub
    assert hub is not None
    assert hub.tls is not None
    assert load(path, ReconcilerSettings).hub == hub
    assert all(url.startswith("tls://") for url in hub.url.split(","))
    for kind, keys, folder in (
        ("DaemonSet", set(), str(Path(hub.tls.ca_file).parent)),
        ("Deployment", set(), str(Path(hub.tls.ca_file).parent)),
        ("StatefulSet", {"tls"}, "/etc/nats/ca"),
    ):
        spec = pod_spec(manifests, kind)
        named = {volume["name"]: volume for volume in spec["volumes"]}
        secrets = {name: volume["secret"]["secretName"] for name, volume in named.items() if "secret" in volume}
        assert {name for name, secret in secrets.items() if secret == "plumbline-hub-tls"} == keys
        (mount,) = (mount for mount in spec["containers"][0]["volumeMounts"] if mount["mountPath"] == folder)
        assert named[mount["name"]]["configMap"]["name"] == "plumbline-hub-ca"
        assert "subPath" not in mount  # otherwise it is never renewed
