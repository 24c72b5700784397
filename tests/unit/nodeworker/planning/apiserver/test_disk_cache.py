"""The copy on disk: a written copy is read, a damaged one is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nodeworker.planning.cluster.apiserver.decode import NADS, PODS
from nodeworker.planning.cluster.apiserver.disk_cache import DiskCache
from nodeworker.planning.resolve.objects import Nad, PodObject

OBJECTS = (Nad("default", "a", '{"type": "macvlan"}'), Nad("shop", "b", "line\nline", {"key": "value"}))


@pytest.fixture
def copy(tmp_path: Path) -> DiskCache[Nad]:
    return DiskCache(tmp_path / "state" / "networks.json", NADS, "networks")


def saved(copy: DiskCache[Nad], tmp_path: Path) -> Path:
    copy.save(OBJECTS)
    return tmp_path / "state" / "networks.json"


def test_saved_objects_are_loaded(copy: DiskCache[Nad], tmp_path: Path) -> None:
    assert copy.load() == []
    path = saved(copy, tmp_path)
    assert copy.load() == list(OBJECTS)
    assert path.stat().st_mode & 0o777 == 0o600
    copy.save(OBJECTS[:1])
    assert copy.load() == [OBJECTS[0]]
    copy.save(())
    assert copy.load() == []
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_torn_copy_is_ignored_and_logged(copy: DiskCache[Nad], tmp_path: Path) -> None:
    path = saved(copy, tmp_path)
    whole = path.read_bytes()
    # Without the last newline it is still complete.
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        with capture_logs() as logs:
            assert copy.load() == []
        assert [(log["event"], log["file"]) for log in logs] == [("cluster_copy_unusable", str(path))]


def test_corrupt_copy_is_ignored(copy: DiskCache[Nad], tmp_path: Path) -> None:
    path = saved(copy, tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with capture_logs():
            assert copy.load() in ([], list(OBJECTS))


def test_copy_of_another_scope_or_format_is_ignored(copy: DiskCache[Nad], tmp_path: Path) -> None:
    path = saved(copy, tmp_path)
    with capture_logs() as logs:
        assert DiskCache(path, NADS, "pods of node a").load() == []
        path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2'))
        assert copy.load() == []
    assert [log["error"] for log in logs] == [
        "it has networks in format 1, not pods of node a in 1",
        "it has networks in format 2, not networks in 1",
    ]


def test_draft_of_a_killed_worker_is_replaced(copy: DiskCache[Nad], tmp_path: Path) -> None:
    path = saved(copy, tmp_path)
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text("half")
    draft.chmod(0o644)
    copy.save(OBJECTS)
    assert copy.load() == list(OBJECTS)
    assert path.stat().st_mode & 0o777 == 0o600


def test_failed_save_keeps_the_last_copy(copy: DiskCache[Nad], tmp_path: Path) -> None:
    path = saved(copy, tmp_path)
    path.with_name(f".{path.name}.tmp").mkdir()
    with pytest.raises(OSError, match="directory"):
        copy.save(())
    path.with_name(f".{path.name}.tmp").rmdir()
    assert copy.load() == list(OBJECTS)


def test_closed_copy_ignores_older_objects(copy: DiskCache[Nad], tmp_path: Path) -> None:
    saved(copy, tmp_path)
    copy.close()
    copy.save(())
    assert copy.load() == list(OBJECTS)


def test_cached_pods_have_all_fields_of_planning(tmp_path: Path) -> None:
    copy = DiskCache(tmp_path / "pods.json", PODS, "pods")
    pods = [PodObject("default", "a", "uid", {"k8s.v1.cni.cncf.io/networks": "a"}, static=True)]
    copy.save(pods)
    assert copy.load() == pods
