"""Which reservations of a network GC frees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.ipam import host_local


def config(folder: Path, subnet: str = "10.9.0.0/24") -> dict[str, Any]:
    ipam = {"type": "host-local", "dataDir": str(folder), "ranges": [[{"subnet": subnet}]]}
    return {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": ipam}


def call(folder: Path, container_id: str = "", ifname: str = "", subnet: str = "10.9.0.0/24") -> Call:
    return Call(container_id=container_id, netns="", ifname=ifname, config=config(folder, subnet))


def held(folder: Path) -> set[str]:
    return {file.name for file in (folder / "net").iterdir() if file.name.startswith("10.")}


def test_gc_frees_only_reservations_without_a_valid_attachment(tmp_path: Path) -> None:
    for container_id, ifname in (("kept", "eth0"), ("kept", "net1"), ("gone", "eth0")):
        host_local.add(call(tmp_path, container_id, ifname))
    (tmp_path / "net" / "10.9.0.77").write_text("of a plugin before 0.8")
    (tmp_path / "net" / "10.9.0.78").touch()
    (tmp_path / "net" / "notes").write_text("gone\r\neth0")
    host_local.collect(call(tmp_path), [("kept", "eth0"), ("kept", "net1")])
    assert held(tmp_path) == {"10.9.0.2", "10.9.0.3", "10.9.0.77", "10.9.0.78"}
    assert (tmp_path / "net" / "notes").exists()


def test_gc_without_valid_attachments_frees_every_reservation(tmp_path: Path) -> None:
    host_local.add(call(tmp_path, "gone", "eth0"))
    host_local.collect(call(tmp_path), [])
    assert held(tmp_path) == set()


def test_a_network_that_was_never_used_has_nothing_to_free(tmp_path: Path) -> None:
    host_local.collect(call(tmp_path), [])
    assert not list(tmp_path.iterdir())


def test_a_network_without_an_address_left_is_not_ready(tmp_path: Path) -> None:
    host_local.status(call(tmp_path, subnet="10.9.0.0/30"))
    host_local.add(call(tmp_path, "a", "eth0", subnet="10.9.0.0/30"))
    with pytest.raises(NativeError, match="can't serve network net") as caught:
        host_local.status(call(tmp_path, subnet="10.9.0.0/30"))
    assert caught.value.code == 50
