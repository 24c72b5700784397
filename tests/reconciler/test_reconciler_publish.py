from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from stories import Node
from test_reconciler_status import folded

from events.schema import Pod
from reconciler.metrics import Metrics
from reconciler.publish import Publisher, StatusFolder
from reconciler.status import PodName, PodStatus, StatusError

POD = PodName("shop", "web-0")
STATUS = PodStatus(Pod("shop", "web-0", "uid"), "[{}]")


def test_the_file_says_the_pod_and_its_annotation_and_everyone_may_read_it(tmp_path: Path) -> None:
    assert StatusFolder(tmp_path).put(POD, STATUS)
    path = tmp_path / "status/shop/web-0.json"
    assert json.loads(path.read_text()) == {
        "namespace": "shop",
        "name": "web-0",
        "uid": "uid",
        "annotations": {"k8s.v1.cni.cncf.io/network-status": "[{}]"},
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["web-0.json"]


def test_an_equal_status_is_not_written_again(tmp_path: Path) -> None:
    folder = StatusFolder(tmp_path)
    folder.put(POD, STATUS)
    before = (tmp_path / "status/shop/web-0.json").stat()
    assert not folder.put(POD, STATUS)
    after = (tmp_path / "status/shop/web-0.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_torn_file_is_replaced(tmp_path: Path) -> None:
    folder = StatusFolder(tmp_path)
    folder.put(POD, STATUS)
    whole = (tmp_path / "status/shop/web-0.json").read_bytes()
    (tmp_path / "status/shop/web-0.json").write_bytes(b"")
    (tmp_path / "status/shop/.writing").write_bytes(b"left by a crash, and longer than the file that comes" * 10)
    assert folder.put(POD, STATUS)
    assert (tmp_path / "status/shop/web-0.json").read_bytes() == whole


def test_a_withdrawn_status_is_gone_and_withdrawing_it_again_is_nothing(tmp_path: Path) -> None:
    folder = StatusFolder(tmp_path)
    folder.put(POD, STATUS)
    assert folder.pods() == {POD}
    assert folder.put(POD, None)
    assert not folder.put(POD, None)
    assert folder.pods() == set()


@pytest.mark.parametrize(
    ("namespace", "name"),
    [
        ("..", "x"), ("shop", ".."), ("shop", "../../x"), ("shop", "a/b"), ("", "x"), ("shop", ""), ("Shop", "x"),
        ("shop", ".x"), ("shop", "x\n"), ("shop", "x\0"), ("a" * 64, "x"), ("shop", "a" * 254), ("a.b", "x"),
    ],
)  # fmt: skip
def test_a_name_that_no_pod_can_have_touches_no_file(tmp_path: Path, namespace: str, name: str) -> None:
    with pytest.raises(StatusError, match="RFC 1123"):
        StatusFolder(tmp_path / "m").put(PodName(namespace, name), STATUS)
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_the_new_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "status/shop").mkdir(parents=True)
    (tmp_path / "status/shop/.writing").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        StatusFolder(tmp_path).put(POD, STATUS)
    assert not (tmp_path / "victim").exists()


def test_what_could_not_be_written_is_returned_and_what_never_can_be_is_not(tmp_path: Path) -> None:
    (tmp_path / "status").mkdir()
    (tmp_path / "status/shop").write_text("not a folder")
    node, metrics = Node(), Metrics()
    sandboxes = folded(node.attach("a" * 64, Pod("shop", "web-0", "u")))
    publisher = Publisher(StatusFolder(tmp_path), lambda _pod: sandboxes, metrics)
    bad, fine = PodName("x", "../x"), PodName("y", "y")
    assert publisher.publish({POD, bad, fine}) == {POD}
    assert metrics.registry.get_sample_value("plumbline_reconciler_status_failed_total") == 2
    assert metrics.registry.get_sample_value("plumbline_reconciler_status_published_total") == 1
    (tmp_path / "status/shop").unlink()
    assert publisher.publish({POD}) == set()
    assert publisher.published() == {POD, fine}
