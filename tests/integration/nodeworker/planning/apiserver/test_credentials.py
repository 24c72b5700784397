"""The worker's credentials for the API server: every form that a kubeconfig or a cluster has."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from events.process.settings import SettingsError
from nodeworker.planning.cluster.apiserver.credentials import Credentials, from_kubeconfig, in_cluster
from nodeworker.planning.cluster.apiserver.source import Kubernetes
from nodeworker.planning.cluster.source import SourceUnavailableError
from tests.support.kube.fake_api import Reply, Request, fake_api, network
from tests.support.kube.manifests import write_kubeconfig
from tests.support.kube.server import WORKER, KubeServer


async def works(credentials: Credentials, folder: Path) -> bool:
    """Return whether the API server accepts these credentials for networks. Raises SourceUnavailableError."""
    source = Kubernetes(credentials, "any", folder / "copies")
    try:
        return await source.nad("default", "absent") is None
    finally:
        source.close()


def data(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


async def test_token_in_the_kubeconfig_is_used(kube: KubeServer, tmp_path: Path) -> None:
    assert await works(from_kubeconfig(kube.kubeconfig(tmp_path / "config", token=WORKER)), tmp_path)


async def test_token_file_is_found_relative_to_the_kubeconfig(kube: KubeServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{WORKER}\n")
    assert await works(from_kubeconfig(kube.kubeconfig(tmp_path / "config", tokenFile="token")), tmp_path)


async def test_client_certificate_in_files_is_presented(kube: KubeServer, tmp_path: Path) -> None:
    certificate, key = str(kube.folder / "client.crt"), str(kube.folder / "client.key")
    config = kube.kubeconfig(tmp_path / "config", client_certificate=certificate, client_key=key)
    assert await works(from_kubeconfig(config), tmp_path)


async def test_embedded_certificates_are_used_without_a_file(kube: KubeServer, tmp_path: Path) -> None:
    config = write_kubeconfig(
        tmp_path / "config",
        {"server": kube.url, "certificate-authority-data": data(kube.ca)},
        {
            "client-certificate-data": data(kube.folder / "client.crt"),
            "client-key-data": data(kube.folder / "client.key"),
        },
    )
    open_before = len(os.listdir("/proc/self/fd"))
    credentials = from_kubeconfig(config)
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert await works(credentials, tmp_path)
    assert os.listdir(tmp_path) == ["config"]


async def test_pod_in_a_cluster_needs_no_kubeconfig(kube: KubeServer, tmp_path: Path) -> None:
    account = service_account(kube, tmp_path)
    host, port = kube.url.removeprefix("https://").split(":")
    environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    assert await works(in_cluster(environ, account), tmp_path)


def service_account(kube: KubeServer, folder: Path) -> Path:
    account = folder / "serviceaccount"
    account.mkdir()
    (account / "token").write_text(WORKER)
    (account / "ca.crt").write_bytes(kube.ca.read_bytes())
    return account


def test_ipv6_service_is_addressed_in_brackets(kube: KubeServer, tmp_path: Path) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    access = in_cluster(environ, service_account(kube, tmp_path)).current()
    assert (access.host, access.port, access.authority) == ("fd00::1", 6443, "[fd00::1]:6443")
    assert access.server_name == "fd00::1"


async def test_server_with_an_untrusted_certificate_is_refused(kube: KubeServer, tmp_path: Path) -> None:
    foreign = kube.folder / "client.crt"
    config = write_kubeconfig(
        tmp_path / "config", {"server": kube.url, "certificate-authority": str(foreign)}, {"token": WORKER}
    )
    with pytest.raises(SourceUnavailableError, match="its certificate is not trusted"):
        await works(from_kubeconfig(config), tmp_path)


async def test_server_name_can_differ_from_the_host(kube: KubeServer, tmp_path: Path) -> None:
    cluster = {"server": kube.url, "certificate-authority": str(kube.ca)}
    for name, right in (("localhost", True), ("example.org", False)):
        config = write_kubeconfig(tmp_path / name, {**cluster, "tls-server-name": name}, {"token": WORKER})
        if right:
            assert await works(from_kubeconfig(config), tmp_path)
        else:
            with pytest.raises(SourceUnavailableError, match=r"example\.org"):
                await works(from_kubeconfig(config), tmp_path)


async def test_verification_can_be_switched_off(kube: KubeServer, tmp_path: Path) -> None:
    config = write_kubeconfig(
        tmp_path / "config", {"server": kube.url, "insecure-skip-tls-verify": True}, {"token": WORKER}
    )
    assert await works(from_kubeconfig(config), tmp_path)


async def test_server_path_prefixes_the_api_path(tmp_path: Path) -> None:
    async def found(request: Request, reply: Reply) -> None:
        assert request.path.startswith("/clusters/one/apis/")
        assert request.headers["authorization"] == "Bearer token"
        await reply.json(network("a"))

    async with fake_api(on_get=found) as fake:
        config = write_kubeconfig(tmp_path / "config", {"server": f"{fake.url}/clusters/one/"}, {"token": "token"})
        source = Kubernetes(from_kubeconfig(config), "any", tmp_path)
        assert await source.nad("default", "a") is not None
        source.close()


async def test_401_is_retried_after_reading_the_files_again(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    times = os.stat(token)

    async def strict(request: Request, reply: Reply) -> None:
        if request.headers["authorization"] == "Bearer new":
            await reply.json(network("a"))
            return
        # Renewed at this moment, with the same times and size.
        with token.open("r+") as file:
            file.write("new")
        os.utime(token, ns=(times.st_atime_ns, times.st_mtime_ns))
        await reply.json({"message": "Unauthorized", "code": 401}, 401)

    async with fake_api(on_get=strict) as fake:
        config = write_kubeconfig(tmp_path / "config", {"server": fake.url}, {"tokenFile": "token"})
        source = Kubernetes(from_kubeconfig(config), "any", tmp_path)
        assert await source.nad("default", "a") is not None
        assert len(fake.asked("get")) == 2
        source.close()


def test_access_is_rebuilt_only_when_a_file_changes(tmp_path: Path) -> None:
    config = write_kubeconfig(tmp_path / "config", {"server": "http://localhost"}, {"tokenFile": "token"})
    token = tmp_path / "token"
    token.write_text("one")
    credentials = from_kubeconfig(config)
    first = credentials.current()
    token.write_text("one")
    assert credentials.current() is first
    assert credentials.renew() is first
    token.write_text("three")
    assert credentials.current().token == "three"


async def test_unreadable_credentials_are_reported(tmp_path: Path) -> None:
    config = write_kubeconfig(tmp_path / "config", {"server": "http://localhost:1"}, {"tokenFile": "token"})
    (tmp_path / "token").write_text("one")
    source = Kubernetes(from_kubeconfig(config), "any", tmp_path)
    (tmp_path / "token").unlink()
    with pytest.raises(
        SourceUnavailableError, match=r"credentials for the API server can't be read: .*token: No such file"
    ):
        await source.nad("default", "a")
    source.close()


CLUSTER = {"name": "a", "cluster": {"server": "https://localhost"}}
CONTEXT = {"name": "a", "context": {"cluster": "a", "user": "a"}}
USER = {"name": "a", "user": {}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"current-context": ""}, "has no context ''"),
        ({"current-context": "b"}, "has no context 'b'"),
        ({"clusters": []}, "has no cluster 'a'"),
        ({"users": None}, "has no user 'a'"),
        ({"clusters": [{"name": "a", "cluster": {}}]}, "missing required field `server`"),
        ({"clusters": [{"name": "a", "cluster": {"server": "localhost:6443"}}]}, "not of the form https://host:port"),
        ({"clusters": [{"name": "a", "cluster": {"server": "https://a:b"}}]}, "can't be used"),
        ({"users": [{"name": "a", "user": {"exec": {"command": "aws"}}}]}, "user a uses exec, which the worker"),
        ({"users": [{"name": "a", "user": {"tokenFile": "absent"}}]}, "absent: No such file"),
        ({"users": [{"name": "a", "user": {"tokenFile": "empty"}}]}, "empty has no token"),
        ({"users": [{"name": "a", "user": {"client-certificate-data": "?"}}]}, "not base64"),
        ({"users": [{"name": "a", "user": {"client-certificate-data": "AAAA"}}]}, "client certificate and key"),
        (
            {"clusters": [{"name": "a", "cluster": {"server": "https://a", "certificate-authority-data": "AAAA"}}]},
            "certificate authority can't be used",
        ),
        ({"clusters": [{"name": "a", "cluster": {"server": 5}}]}, "Expected `str`, got `int`"),
    ],
)
def test_invalid_kubeconfig_error_names_the_problem(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    (tmp_path / "empty").write_text("\n")
    path = tmp_path / "config"
    content = {"current-context": "a", "contexts": [CONTEXT], "clusters": [CLUSTER], "users": [USER]}
    path.write_text(json.dumps({**content, **change}))
    with pytest.raises(SettingsError) as failure:
        from_kubeconfig(path)
    assert problem in str(failure.value)


@pytest.mark.parametrize("text", ["", "[]", "a: [", "\0"])
def test_file_that_is_not_a_kubeconfig_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(SettingsError, match=f"kubeconfig {path}"):
        from_kubeconfig(path)


def test_encrypted_key_is_refused_without_a_prompt(kube: KubeServer, tmp_path: Path) -> None:
    text = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIBAA==\n-----END ENCRYPTED PRIVATE KEY-----\n"
    (tmp_path / "key").write_text(text)
    config = kube.kubeconfig(
        tmp_path / "config", client_certificate=str(kube.folder / "client.crt"), client_key=str(tmp_path / "key")
    )
    with pytest.raises(SettingsError, match="client certificate and key can't be used"):
        from_kubeconfig(config)


def test_error_outside_a_cluster_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="KUBERNETES_SERVICE_HOST is not set"):
        in_cluster({}, tmp_path)
    with pytest.raises(SettingsError, match="token: No such file"):
        in_cluster({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)


async def test_secrets_are_not_in_logs_or_errors(tmp_path: Path) -> None:
    config = write_kubeconfig(tmp_path / "config", {"server": "http://localhost:1"}, {"token": "s3cret\ninjected: x"})
    source = Kubernetes(from_kubeconfig(config), "any", tmp_path)
    with capture_logs() as logs, pytest.raises(SourceUnavailableError) as failure:
        await source.nad("default", "a")
    assert "s3cret" not in f"{logs}{failure.value}"
    source.close()
