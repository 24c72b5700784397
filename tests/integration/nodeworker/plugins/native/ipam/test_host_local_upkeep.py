"""Whether host-local says in time that it can't serve, and what GC frees, given the addresses in use."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.ipam import host_local, static
from tests.support.plugins.ipam_harness import executed, native, needs_plugins, network, on_disk, reserved

SUBNET = {"subnet": "10.1.0.0/29"}
DUAL = {"ranges": [[{"subnet": "10.1.0.0/29"}, {"subnet": "10.2.0.0/30"}], [{"subnet": "fd00::/64"}]]}


def about_network(config: dict[str, Any]) -> Call:
    return Call(container_id="", netns="", ifname="", config=config)


def status(config: dict[str, Any]) -> None:
    host_local.status(about_network(config))


def refused(config: dict[str, Any]) -> tuple[int, str]:
    with pytest.raises(NativeError) as caught:
        status(config)
    return caught.value.code, str(caught.value)


def collect(config: dict[str, Any], *valid: tuple[str, str]) -> None:
    host_local.collect(about_network(config), frozenset(valid))


@pytest.mark.parametrize("ipam", [SUBNET, DUAL])
def test_status_changes_from_one_address_left_to_none(tmp_path: Path, ipam: dict[str, Any]) -> None:
    config = network(tmp_path, ipam)
    assert on_disk(tmp_path) == {}
    containers = 0
    while True:
        status(config)
        if native("ADD", config, f"c{containers}").code:
            break
        containers += 1
        if containers == (5 if ipam is SUBNET else 6):  # the gateways are not assigned
            break
    code, words = refused(config)
    assert code == 50
    assert words.startswith("host-local can't serve network net: all addresses of 10.1.0.1-10.1.0.6")
    assert native("ADD", config, "late").code == 999
    native("DEL", config, "c3")
    status(config)


def test_status_counts_only_files_of_addresses(tmp_path: Path) -> None:
    config = network(tmp_path, {"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.3", "rangeEnd": "10.1.0.4"})
    folder = tmp_path / "net"
    folder.mkdir()
    for name in ("lock", "last_reserved_ip.0", "10.1.0.1", "10.1.0.2", "10.1.0.5", "10.1.0.03", "fd00::3", "10.1.0.3"):
        (folder / name).touch()
    status(config)
    (folder / "10.1.0.4").mkdir()
    assert refused(config)[0] == 50
    assert native("ADD", config).code == 999


def test_status_does_not_wait_for_the_lock(tmp_path: Path) -> None:
    config = network(tmp_path, SUBNET)
    native("ADD", config)
    with (tmp_path / "net" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status(config)


def test_status_makes_nothing(tmp_path: Path) -> None:
    status(network(tmp_path / "not" / "yet", SUBNET))
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_status_reports_a_full_or_read_only_file_system(small: Path) -> None:
    config = network(small, SUBNET)
    status(config)
    (small / "filler").write_bytes(bytes(os.statvfs(small).f_bavail * os.statvfs(small).f_bsize))
    code, words = refused(config)
    assert (code, "no space is left" in words, str(small) in words) == (50, True, True)
    (small / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    assert refused(config) == (
        50,
        f"host-local can't serve network net: {small} can't be written: repair the file system",
    )


def test_status_reports_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "net").touch()
    assert refused(network(tmp_path, SUBNET)) == (
        50,
        f"host-local can't serve network net: {tmp_path}/net is not a folder: remove or rename it",
    )
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    assert "dangling is not a folder" in refused(network(tmp_path / "dangling" / "below", SUBNET))[1]


def test_status_ignores_ranges_that_only_an_add_supplies(tmp_path: Path) -> None:
    status(network(tmp_path, {}, capabilities={"ipRanges": True}))
    assert refused(network(tmp_path, {})) == (
        7,
        "host-local can't serve network net: no range is configured: set subnet or ranges",
    )


def test_gc_frees_only_invalid_attachments(tmp_path: Path) -> None:
    config = network(tmp_path, DUAL)
    for container in ("c1", "c2"):
        for ifname in ("net1", "net2"):
            assert native("ADD", config, container, ifname).code == 0
    before = reserved(tmp_path)
    collect(config, ("c1", "net1"), ("c1", "net2"), ("c2", "net1"), ("c2", "net2"), ("c3", "net1"))
    assert reserved(tmp_path) == before
    collect(config, ("c1", "net2"), ("c2", "net1"))
    assert set(reserved(tmp_path).values()) == {b"c1\r\nnet2", b"c2\r\nnet1"}
    assert len(reserved(tmp_path)) == 4
    collect(config)
    assert reserved(tmp_path) == {}
    collect(network(tmp_path / "nowhere", DUAL))
    assert not (tmp_path / "nowhere").exists()


@needs_plugins
def test_reservations_of_the_executed_plugin_are_freed_alike(tmp_path: Path) -> None:
    config = network(tmp_path, SUBNET)
    executed("ADD", config, "c1")
    executed("ADD", config, "c2")
    collect(config, ("c2", "net1"))
    assert list(reserved(tmp_path).values()) == [b"c2\r\nnet1"]


def test_gc_never_frees_a_file_without_an_interface(tmp_path: Path) -> None:
    config = network(tmp_path, SUBNET)
    folder = tmp_path / "net"
    folder.mkdir()
    (tmp_path / "elsewhere").write_bytes(b"gone\r\nnet1")
    contents = {
        "10.1.0.1": b"",
        "10.1.0.2": b"gone",
        "10.1.0.3": b"gone\nnet1",
        "10.1.0.4": b"gone\r\nnet1\r\nmore",
        "10.1.0.5": b"../gone\r\nnet1",
        "10.1.0.6": b"gone\r\nan interface",
        "10.1.0.7": b"\xff\r\nnet1",
        "10.1.0.08": b"gone\r\nnet1",
        "last_reserved_ip.0": b"gone\r\nnet1",
        "notes": b"gone\r\nnet1",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "10.1.0.8").symlink_to(tmp_path / "elsewhere")
    (folder / "10.1.0.9").mkdir()
    collect(config)
    assert on_disk(tmp_path) == contents | {"10.1.0.8": b"gone\r\nnet1", "10.1.0.9": None, "lock": b""}


def test_a_file_that_changed_hands_in_place_is_not_freed(tmp_path: Path) -> None:
    config = network(tmp_path, SUBNET)
    native("ADD", config, "c1")
    file = next((tmp_path / "net").glob("10.*"))
    with file.open("r+b") as opened:
        opened.truncate()
        opened.write(b"c2\r\nnet1")
    collect(config, ("c2", "net1"))
    assert reserved(tmp_path) == {file.name: b"c2\r\nnet1"}


def test_nothing_is_freed_while_another_holds_the_lock(tmp_path: Path) -> None:
    config = network(tmp_path, SUBNET)
    native("ADD", config)
    with (tmp_path / "net" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(NativeError, match="can't use network net now") as caught:
            host_local.collect(replace(about_network(config), lock_timeout=0.01), frozenset())
    assert caught.value.code == 11
    assert len(reserved(tmp_path)) == 1


def test_static_needs_no_status_and_no_del() -> None:
    config = {"cniVersion": "1.1.0", "name": "net", "ipam": {"type": "static"}}
    static.status(about_network(config))
    static.collect(about_network(config), frozenset())
