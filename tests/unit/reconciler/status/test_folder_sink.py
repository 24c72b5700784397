"""The status beside the manifests: one complete file per pod, and no other files."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path

import pytest

from events.schema import Pod
from reconciler.projection.fold.published import PodName
from reconciler.status.folder_sink import FolderSink
from reconciler.status.sink import PublishError
from reconciler.status.text import PodStatus

POD = PodName("shop", "web-0")
STATUS = PodStatus(Pod("shop", "web-0", "uid"), "[{}]")


def of(pod: PodName) -> PodStatus:
    return PodStatus(Pod(pod.namespace, pod.name, "uid"), "[{}]")


async def test_the_file_has_pod_and_annotation_and_is_world_readable(tmp_path: Path) -> None:
    assert await FolderSink(tmp_path).put(STATUS, None)
    path = tmp_path / "status/shop/web-0.json"
    assert json.loads(path.read_text()) == {
        "namespace": "shop",
        "name": "web-0",
        "uid": "uid",
        "annotations": {"k8s.v1.cni.cncf.io/network-status": "[{}]"},
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["web-0.json"]


async def test_an_equal_status_is_not_written_again(tmp_path: Path) -> None:
    folder = FolderSink(tmp_path)
    await folder.put(STATUS, None)
    before = (tmp_path / "status/shop/web-0.json").stat()
    assert not await folder.put(STATUS, None)
    after = (tmp_path / "status/shop/web-0.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_a_missing_file_is_written_despite_the_ledgers_record(tmp_path: Path) -> None:
    assert await FolderSink(tmp_path).put(STATUS, STATUS)
    assert (tmp_path / "status/shop/web-0.json").exists()


async def test_a_torn_file_is_replaced(tmp_path: Path) -> None:
    folder = FolderSink(tmp_path)
    await folder.put(STATUS, None)
    whole = (tmp_path / "status/shop/web-0.json").read_bytes()
    (tmp_path / "status/shop/web-0.json").write_bytes(b"")
    (tmp_path / "status/shop/.web-0").write_bytes(b"left by a crash, and longer than the file that comes" * 10)
    assert await folder.put(STATUS, None)
    assert (tmp_path / "status/shop/web-0.json").read_bytes() == whole


async def test_pods_of_one_namespace_have_separate_files(tmp_path: Path) -> None:
    folder, names = FolderSink(tmp_path), [PodName("shop", f"web-{number}") for number in range(40)]
    assert all(await asyncio.gather(*(folder.put(of(name), None) for name in names)))
    assert await folder.withdrawable() == set(names)
    for name in names:
        assert json.loads((tmp_path / f"status/shop/{name.name}.json").read_text())["name"] == name.name


async def test_a_second_withdrawal_changes_nothing(tmp_path: Path) -> None:
    folder = FolderSink(tmp_path)
    await folder.put(STATUS, None)
    assert await folder.withdrawable() == {POD}
    assert await folder.withdraw(POD)
    assert not await folder.withdraw(POD)
    assert await folder.withdrawable() == set()


@pytest.mark.parametrize(
    ("namespace", "name"),
    [
        ("..", "x"), ("shop", ".."), ("shop", "../../x"), ("shop", "a/b"), ("", "x"), ("shop", ""), ("Shop", "x"),
        ("shop", ".x"), ("shop", "x\n"), ("shop", "x\0"), ("a" * 64, "x"), ("shop", "a" * 254), ("a.b", "x"),
    ],
)  # fmt: skip
async def test_an_invalid_pod_name_touches_no_file(tmp_path: Path, namespace: str, name: str) -> None:
    folder = FolderSink(tmp_path / "m")
    for call in (folder.put(of(PodName(namespace, name)), None), folder.withdraw(PodName(namespace, name))):
        with pytest.raises(PublishError, match="RFC 1123") as error:
            await call
        assert error.value.final
    assert os.listdir(tmp_path) == []


async def test_a_symbolic_link_at_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "status/shop").mkdir(parents=True)
    (tmp_path / "status/shop/.web-0").symlink_to(tmp_path / "victim")
    with pytest.raises(PublishError, match="symbolic links") as error:
        await FolderSink(tmp_path).put(STATUS, None)
    assert not error.value.final
    assert not (tmp_path / "victim").exists()


async def test_an_unwritable_folder_is_not_final(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("in the way")
    folder = FolderSink(tmp_path)
    with pytest.raises(PublishError, match=r"pod shop/web-0: .*Not a directory; check the folder") as error:
        await folder.put(STATUS, None)
    assert not error.value.final
    (tmp_path / "status").unlink()
    assert await folder.put(STATUS, None)


async def test_pods_with_the_longest_names_have_files_too(tmp_path: Path) -> None:
    folder = FolderSink(tmp_path)
    names = [PodName("shop", "a" * (length - len(tail)) + tail) for length in range(245, 254) for tail in ("", ".json")]
    assert all([await folder.put(of(name), None) for name in names])
    assert await folder.withdrawable() == set(names)
    assert len(os.listdir(tmp_path / "status/shop")) == len(names)
    seen = {status.pod: status.text async for status in folder.read_all()}
    assert seen == dict.fromkeys(names, "[{}]")
    assert all([await folder.withdraw(name) for name in names])
    assert os.listdir(tmp_path / "status/shop") == []
