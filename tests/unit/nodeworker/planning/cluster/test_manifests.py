"""A folder of manifests as the cluster: which objects are found, which files are skipped, and how changes are seen."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nodeworker.planning.cluster.manifests import Manifests
from nodeworker.planning.cluster.source import Source, SourceUnavailableError
from nodeworker.planning.resolve.objects import Nad, PodObject

POD = """
apiVersion: v1
kind: Pod
metadata:
  name: samplepod
  annotations:
    k8s.v1.cni.cncf.io/networks: macvlan-conf,macvlan-conf
spec:
  containers: []
"""
NAD = """
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: macvlan-conf
  namespace: shop
  creationTimestamp: 2024-01-01T00:00:00Z
spec:
  config: '{"type": "macvlan"}'
"""


@pytest.fixture
def manifests(tmp_path: Path) -> Iterator[Manifests]:
    source = Manifests(tmp_path)
    yield source
    source.close()


def write(path: Path, text: str) -> None:
    """Write *text* as a careful administrator does: whole, to another name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").replace(path)


async def test_objects_are_found_in_all_documents_of_all_folders(manifests: Manifests, tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", POD + "---\n---\nkind: Service\nmetadata: {name: samplepod}\n---" + NAD)
    write(tmp_path / "deep" / "er" / "b.yml", POD.replace("samplepod", "other\n  namespace: shop\n  uid: u1"))
    source: Source = manifests
    annotations = {"k8s.v1.cni.cncf.io/networks": "macvlan-conf,macvlan-conf"}
    assert await source.pod("default", "samplepod") == PodObject("default", "samplepod", "", annotations)
    assert await source.pod("shop", "other") == PodObject("shop", "other", "u1", annotations)
    assert await source.nad("shop", "macvlan-conf") == Nad("shop", "macvlan-conf", '{"type": "macvlan"}')


async def test_lists_and_tab_indented_json_are_read(manifests: Manifests, tmp_path: Path) -> None:
    text = """{
\t"kind": "List", "apiVersion": "v1",
\t"items": [
\t\t{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}},
\t\t{"kind": "NetworkAttachmentDefinition", "apiVersion": "k8s.cni.cncf.io/v1", "metadata": {"name": "b"}}
\t]
}"""
    write(tmp_path / "all.json", text)
    assert await manifests.pod("default", "a") == PodObject("default", "a")
    assert await manifests.nad("default", "b") == Nad("default", "b")


@pytest.mark.parametrize("spec", ["", "spec:\n", "spec: {}\n", "spec: {config: ''}\n", "spec: {config: null}\n"])
async def test_nad_may_be_without_configuration(manifests: Manifests, tmp_path: Path, spec: str) -> None:
    write(tmp_path / "a.yaml", NAD.partition("spec:")[0] + spec)
    assert await manifests.nad("shop", "macvlan-conf") == Nad("shop", "macvlan-conf")


async def test_other_groups_hidden_and_status_files_are_skipped(manifests: Manifests, tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", NAD.replace("k8s.cni.cncf.io/v1", "example.org/v1"))
    for name in (".a.yaml", "status/a.yaml", "..data/a.yaml", "a.yaml.orig", "README.md"):
        write(tmp_path / name, NAD)
    assert await manifests.nad("shop", "macvlan-conf") is None
    write(tmp_path / "shop" / "status" / "a.yaml", NAD)
    assert await manifests.nad("shop", "macvlan-conf") is not None


async def test_last_file_by_path_wins(manifests: Manifests, tmp_path: Path) -> None:
    for name in ("b.yaml", "c/a.yaml", "a.yaml"):
        write(tmp_path / name, NAD.replace('"macvlan"', f'"{name}"'))
    found = await manifests.nad("shop", "macvlan-conf")
    assert found is not None
    assert found.config == '{"type": "c/a.yaml"}'


async def test_next_look_up_sees_a_change(manifests: Manifests, tmp_path: Path) -> None:
    assert await manifests.pod("default", "samplepod") is None
    write(tmp_path / "a.yaml", POD)
    assert await manifests.pod("default", "samplepod") is not None
    write(tmp_path / "a.yaml", POD.replace("samplepod", "renamed00"))
    assert await manifests.pod("default", "samplepod") is None
    assert await manifests.pod("default", "renamed00") is not None
    (tmp_path / "a.yaml").unlink()
    assert await manifests.pod("default", "renamed00") is None


async def test_unchanged_file_is_not_read_again(manifests: Manifests, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    write(path, POD)
    before = await manifests.pod("default", "samplepod")
    stat = path.stat()
    with path.open("r+b") as file:
        file.write(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert await manifests.pod("default", "samplepod") is before


BROKEN = {
    "torn": "apiVersion: v1\nkind: [Pod",
    "bool": "a: !!bool maybe",
    "recursive": "&a {kind: List, items: [*a]}",
    "tag": "!!python/object/apply:os.system ['true']",
    "latin": "a: \udcff",
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_broken_file_is_logged_once_per_change_and_stops_no_other(
    manifests: Manifests, tmp_path: Path, kind: str
) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_bytes(BROKEN[kind].encode(errors="surrogateescape"))
    write(tmp_path / "good.yaml", POD)
    with capture_logs() as logs:
        assert await manifests.pod("default", "samplepod") is not None
        assert await manifests.pod("default", "samplepod") is not None
    assert [(log["event"], log["file"], log["log_level"]) for log in logs] == [
        ("manifest_unusable", "broken.yaml", "warning")
    ]
    broken.write_bytes(broken.read_bytes() + b"\n")
    with capture_logs() as logs:
        assert await manifests.pod("default", "samplepod") is not None
    assert len(logs) == 1
    write(broken, NAD)
    with capture_logs() as logs:
        assert await manifests.pod("default", "samplepod") is not None
        assert await manifests.nad("shop", "macvlan-conf") is not None
    assert logs == []


async def test_changed_network_is_seen_soon(manifests: Manifests, tmp_path: Path) -> None:
    write(tmp_path / "pod.yaml", POD)
    assert await manifests.pod("default", "samplepod") is not None
    write(tmp_path / "nad.yaml", NAD)
    await asyncio.sleep(0.02)
    assert await manifests.nad("shop", "macvlan-conf") is not None
    write(tmp_path / "nad.yaml", NAD.replace("macvlan-conf", "other"))
    assert await manifests.pod("default", "samplepod") is not None
    assert await manifests.nad("shop", "macvlan-conf") is None


@pytest.mark.parametrize(
    "metadata", ["{}", "{name: 5}", "{name: bad, annotations: {a: 1}}", "{name: bad, namespace: null}", "bad"]
)
async def test_broken_object_stops_no_other_of_its_file(manifests: Manifests, tmp_path: Path, metadata: str) -> None:
    write(tmp_path / "a.yaml", f"apiVersion: v1\nkind: Pod\nmetadata: {metadata}\n---" + POD)
    with capture_logs() as logs:
        assert await manifests.pod("default", "samplepod") is not None
    assert [(log["event"], log["file"], log["object"]) for log in logs] == [("manifest_object_unusable", "a.yaml", 1)]


@pytest.mark.parametrize("kind", ["missing", "file"])
async def test_missing_folder_makes_the_source_unavailable(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    if kind == "file":
        folder.write_text("")
    source = Manifests(folder)
    with pytest.raises(SourceUnavailableError, match=kind):
        await source.pod("default", "samplepod")
    source.close()


async def test_folder_created_later_is_read(tmp_path: Path) -> None:
    source = Manifests(tmp_path / "later")
    with pytest.raises(SourceUnavailableError):
        await source.nad("shop", "macvlan-conf")
    write(tmp_path / "later" / "a.yaml", NAD)
    assert await source.nad("shop", "macvlan-conf") is not None
    source.close()


async def test_unusable_object_is_said_to_be_there(manifests: Manifests, tmp_path: Path) -> None:
    about = "metadata: {name: web, namespace: shop, annotations: {networks: [a]}}"
    write(tmp_path / "a.yaml", f"apiVersion: v1\nkind: Pod\n{about}")
    write(tmp_path / "b.yaml", f"apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\n{about}")
    with pytest.raises(SourceUnavailableError, match=r"Pod shop/web in .*a\.yaml can't be used: Expected `str`"):
        await manifests.pod("shop", "web")
    sentence = r"NetworkAttachmentDefinition shop/web in .*b\.yaml can't be used: Expected `str`, .*; correct it"
    with pytest.raises(SourceUnavailableError, match=sentence):
        await manifests.nad("shop", "web")
    write(tmp_path / "a.yaml", POD.replace("samplepod", "web\n  namespace: shop"))
    assert await manifests.pod("shop", "web") is not None
