"""Device information files: passed on, read back and removed, and never a reason to fail."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from events.schema import IfName, NetworkName, PlannedAttachment
from nodeworker.plugins import device_info

INFO = '{\n  "type": "pci", "version": "1.1.0",\n  "pci": {"pci-address": "0000:03:02.1"}\n}\n'


def planned(folder: Path, resource: str = "vendor.example/sriov", device: str = "0000:03:02.1") -> PlannedAttachment:
    return PlannedAttachment(
        network=NetworkName("shop/a"),
        ifname=IfName("net1"),
        cni_name="a",
        cni_version="1.0.0",
        plugins=("{}",),
        device_info=str(folder / "cni" / "shop-a-c1_net1"),
        resource=resource,
        device=device,
    )


def write_device_file(folder: Path, text: str | bytes = INFO) -> Path:
    """Write the device plugin's file about the device."""
    path = folder / "dp" / "vendor.example-sriov-0000:03:02.1-device.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def place(plan: PlannedAttachment, text: str | bytes) -> Path:
    """Write a CNI plugin's file about the device."""
    path = Path(plan.device_info)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def in_place(folder: Path) -> list[tuple[str, str, int]]:
    """Return name, text and mode of all files for plugins."""
    return [(p.name, p.read_text(), stat.S_IMODE(p.stat().st_mode)) for p in (folder / "cni").glob("*")]


async def test_device_information_is_passed_on_readable_and_removed(tmp_path: Path) -> None:
    plan, source = planned(tmp_path), write_device_file(tmp_path)
    with capture_logs() as logs:
        await device_info.provide(plan)
        assert in_place(tmp_path) == [("shop-a-c1_net1", INFO, 0o644)]
        assert await device_info.recorded(plan) == INFO
        await device_info.withdraw(plan)
        await device_info.withdraw(plan)
        assert in_place(tmp_path) == []
    assert source.read_text() == INFO
    assert not logs


async def test_existing_device_information_is_replaced(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    write_device_file(tmp_path)
    place(plan, "from an attempt before")
    await device_info.provide(plan)
    assert await device_info.recorded(plan) == INFO


async def test_device_information_of_a_cni_plugin_is_recorded(tmp_path: Path) -> None:
    plan = planned(tmp_path, resource="", device="")
    await device_info.provide(plan)
    place(plan, '{"type":"memif"}')
    assert await device_info.recorded(plan) == '{"type":"memif"}'


async def test_a_device_without_information_is_no_error(tmp_path: Path) -> None:
    plan = planned(tmp_path / "missing")
    with capture_logs() as logs:
        await device_info.provide(plan)
        assert await device_info.recorded(plan) == ""
        await device_info.withdraw(plan)
    assert not logs
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"version": "1.1.0"}',
        '{"type": "usb"}',
        '{"type": "pci", ',
        b'{"type": "pci", "x": "\xff"}',
        "[" * 10_000,
        json.dumps({"type": "pci", "x": "y" * device_info.MAX_BYTES}),
    ],
    ids=["empty", "list", "null", "no-type", "other-type", "torn", "no-utf8", "deep", "large"],
)
async def test_a_file_without_device_is_neither_passed_on_nor_recorded(tmp_path: Path, text: str | bytes) -> None:
    plan, source = planned(tmp_path), write_device_file(tmp_path, text)
    with capture_logs() as logs:
        await device_info.provide(plan)
        assert in_place(tmp_path) == []
        place(plan, text)
        assert await device_info.recorded(plan) == ""
    assert [(log["event"], log["log_level"], log["file"]) for log in logs] == [
        ("device_info_unusable", "warning", str(source)),
        ("device_info_unusable", "warning", plan.device_info),
    ]
    assert all((log["network"], log["ifname"], log["device"]) == ("shop/a", "net1", plan.device) for log in logs)


async def test_a_folder_that_can_not_be_written_is_only_logged(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    write_device_file(tmp_path)
    (tmp_path / "cni").write_text("not a folder")
    with capture_logs() as logs:
        await device_info.provide(plan)
        assert await device_info.recorded(plan) == ""
        await device_info.withdraw(plan)
    assert [log["reason"] for log in logs] == ["it can't be written: File exists"]


async def test_a_folder_in_place_of_the_file_is_left_alone(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    place(plan, "").unlink()
    os.mkdir(plan.device_info)
    with capture_logs() as logs:
        await device_info.withdraw(plan)
    assert [log["reason"] for log in logs] == ["it can't be removed: Is a directory"]
    assert os.listdir(plan.device_info) == []


def test_the_device_plugins_file_is_named_by_resource_and_device(tmp_path: Path) -> None:
    assert device_info.of_device_plugin(planned(tmp_path)) == write_device_file(tmp_path)
    hostile = planned(tmp_path, resource="../..", device="../etc")
    assert device_info.of_device_plugin(hostile) == tmp_path / "dp" / "..-..-..-etc-device.json"
