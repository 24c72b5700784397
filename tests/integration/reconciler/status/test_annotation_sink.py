"""The annotation at a real API server: the sink writes only its own key, and only at the right pod."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from events.process.settings import SettingsError
from events.schema import ErrorClass, Pod
from reconciler.projection.fold.published import PodName
from reconciler.status.kubernetes import annotation_sink
from reconciler.status.kubernetes.annotation_sink import AnnotationSink
from reconciler.status.sink import PublishError
from reconciler.status.text import ANNOTATION, PodStatus
from tests.support.kube.manifests import write_kubeconfig
from tests.support.kube.publishing import connected, create, metadata
from tests.support.kube.server import NOBODY, KubeServer

# --- one request -----------------------------------------------------------------------------------------------------


async def test_the_text_arrives_unchanged_and_foreign_keys_remain(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink
) -> None:
    pod = create(cluster, namespace, annotations={"of/others": "stays", ANNOTATION: "of Multus"})
    text = '[{\n    "name": "\\u003cn\\u003e",\n    "dns": {}\n},{\n    "ips": [\n        "::1"\n    ]\n}] é\N{SNOWMAN}'
    assert await annotation.put(PodStatus(pod, text), None)
    assert metadata(cluster, pod)["annotations"] == {"of/others": "stays", ANNOTATION: text}


async def test_a_published_status_is_not_written_again(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink
) -> None:
    status = PodStatus(create(cluster, namespace), "[]")
    await annotation.put(status, None)
    cluster.annotate_pod(namespace, "web", {ANNOTATION: "somebody else's"})
    assert not await annotation.put(status, status)
    assert metadata(cluster, status.pod)["annotations"][ANNOTATION] == "somebody else's"
    assert await annotation.put(status, replace(status, pod=replace(status.pod, uid="of its predecessor")))


async def test_a_new_pod_of_the_same_name_does_not_get_the_old_status(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink
) -> None:
    first = create(cluster, namespace)
    cluster.delete_pod(namespace, "web")
    second = create(cluster, namespace)
    with pytest.raises(PublishError, match=rf"pod {namespace}/web was replaced.*{first.uid}") as error:
        await annotation.put(PodStatus(first, "[]"), None)
    assert error.value.final
    assert error.value.failure.error_class is ErrorClass.POD_CHANGED
    assert ANNOTATION not in metadata(cluster, second).get("annotations", {})


async def test_a_deleted_pod_is_a_final_failure(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink
) -> None:
    with pytest.raises(PublishError, match=f"pod {namespace}/web is gone") as error:
        await annotation.put(PodStatus(Pod(namespace, "web", "u"), "[]"), None)
    assert error.value.final
    assert error.value.failure.error_class is ErrorClass.POD_NOT_FOUND


async def test_a_too_long_text_is_a_final_failure(
    cluster: KubeServer, namespace: str, annotation: AnnotationSink
) -> None:
    pod = create(cluster, namespace)
    with pytest.raises(PublishError, match=r"422.*262144") as error:
        await annotation.put(PodStatus(pod, "x" * 262145), None)
    assert error.value.final


@pytest.mark.parametrize(("token", "code"), [(NOBODY, 403), ("of nobody at all", 401)])
async def test_a_missing_right_is_not_final(
    cluster: KubeServer, namespace: str, tmp_path: Path, token: str, code: int
) -> None:
    pod = create(cluster, namespace)
    async with connected(cluster, tmp_path, token) as annotation:
        with pytest.raises(PublishError, match=f"refuses its network-status with {code}") as error:
            await annotation.put(PodStatus(pod, "[]"), None)
        assert not error.value.final
        assert error.value.failure.error_class is ErrorClass.API_REFUSED
        assert token not in str(error.value)


@pytest.mark.parametrize(("namespace_", "name"), [("..", "web"), ("default", "../secrets/x"), ("default", "%2e%2e")])
async def test_an_invalid_pod_name_is_never_sent(annotation: AnnotationSink, namespace_: str, name: str) -> None:
    with pytest.raises(PublishError, match="RFC 1123") as error:
        await annotation.put(PodStatus(Pod(namespace_, name, "u"), "[]"), None)
    assert error.value.final


async def test_nothing_is_withdrawn(cluster: KubeServer, namespace: str, annotation: AnnotationSink) -> None:
    pod = create(cluster, namespace)
    await annotation.put(PodStatus(pod, "[]"), None)
    assert not await annotation.withdraw(PodName(namespace, "web"))
    assert await annotation.withdrawable() == set()
    assert metadata(cluster, pod)["annotations"][ANNOTATION] == "[]"


# --- what no real server can be made to do ---------------------------------------------------------------------------


class Scripted:
    """An API server with scripted answers."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.requests = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                answer = self.answers.pop(0)
                if not answer:
                    break
                writer.write(f"HTTP/1.1 {answer}".encode())
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def scripted(folder: Path, *answers: str) -> AsyncIterator[tuple[Scripted, AnnotationSink]]:
    fake = Scripted(*answers)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    path = write_kubeconfig(folder / "kubeconfig", {"server": fake.url}, {"token": "x"})
    publisher = await AnnotationSink.connect(str(path))
    try:
        yield fake, publisher
    finally:
        await publisher.close()
        server.close()


STATUS = PodStatus(Pod("default", "web", "u"), "[]")
DONE = "200 OK\r\ncontent-length: 2\r\n\r\n{}"


def said(code: int, message: str, headers: str = "") -> str:
    content = json.dumps({"kind": "Status", "message": message})
    return f"{code} S\r\n{headers}content-length: {len(content)}\r\n\r\n{content}"


@pytest.mark.parametrize(
    ("answer", "final", "retry_after"),
    [
        (said(429, "too many", "Retry-After: 7\r\n"), False, 7.0),
        (said(429, "too many", "Retry-After: 86400\r\n"), False, 60.0),
        (said(503, "not now", "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n"), False, None),
        (said(500, "etcd is sick"), False, None),
        (said(409, "the object has been modified; please apply your changes to the latest version"), False, None),
        (said(409, "Precondition failed: UID in precondition: u, UID in object meta: v"), True, None),
        (said(400, "what?"), True, None),
    ],
)
async def test_an_answer_decides_on_retry_and_delay(
    tmp_path: Path, answer: str, final: bool, retry_after: float | None
) -> None:
    async with scripted(tmp_path, answer) as (_, publisher):
        with pytest.raises(PublishError) as error:
            await publisher.put(STATUS, None)
        assert (error.value.final, error.value.retry_after) == (final, retry_after)


async def test_a_connection_closed_while_idle_causes_no_failure(tmp_path: Path) -> None:
    async with scripted(tmp_path, DONE, "", DONE) as (fake, publisher):
        await publisher.put(STATUS, None)
        await publisher.put(STATUS, None)
        assert fake.requests == 3


async def test_ready_pings_the_server_only_after_idleness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(tmp_path, DONE, said(500, "sick"), said(403, "no"), DONE, "", "") as (fake, publisher):
        assert await publisher.ready()
        assert await publisher.ready()
        assert fake.requests == 1
        monkeypatch.setattr(annotation_sink, "_IDLE", -1.0)
        assert not await publisher.ready()
        assert await publisher.ready()
        assert await publisher.ready()
        assert not await publisher.ready()


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[]", "kind: Config", "clusters: 3\ncurrent-context: a\ncontexts: []"])
async def test_an_invalid_kubeconfig_is_reported_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(SettingsError, match=f"kubeconfig {path} can't be used") as error:
        await AnnotationSink.connect(str(path))
    assert "\n" not in str(error.value)


async def test_a_missing_service_account_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    with pytest.raises(SettingsError, match="service account of this pod can't be used"):
        await AnnotationSink.connect("")


async def test_outside_a_pod_the_error_says_where_to_run_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SettingsError, match="kubectl -n kube-system exec POD -- plumbline verify"):
        await AnnotationSink.connect("")
