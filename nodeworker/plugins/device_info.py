"""The files that say what a device is: the device plugin's is handed to the plugins, and what they make of it recorded.

Nothing here makes an attach or a detach fail: the file is information for programs in the pod, and a pod that runs
without it is better than one that does not (Device Information 1.1.0, a part of the NPWG specification).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from events.schema import PlannedAttachment

MAX_BYTES = 16 * 1024
"""Of one file. All annotations of a pod together have 256 KiB."""

log = structlog.get_logger(__name__)


class _Info(msgspec.Struct, frozen=True):
    type: Literal["pci", "vdpa", "vhost-user", "memif"]


_DECODER = msgspec.json.Decoder(_Info)


async def provide(plan: PlannedAttachment) -> None:
    """Copy what the device plugin says of the device to where the plugins of *plan* look for it."""
    if plan.resource and plan.device and plan.device_info:
        await asyncio.to_thread(_provide, plan)


async def recorded(plan: PlannedAttachment) -> str:
    """Return the JSON text that the plugins of *plan* have left; nothing where there is none that can be used."""
    return await asyncio.to_thread(_recorded, plan) if plan.device_info else ""


async def withdraw(plan: PlannedAttachment) -> None:
    """Remove the file of *plan*, if it is there."""
    if plan.device_info:
        await asyncio.to_thread(_withdraw, plan)


def of_device_plugin(plan: PlannedAttachment) -> Path:
    """Return the path of the file in which the device plugin says what the device of *plan* is."""
    name = f"{plan.resource}-{plan.device}-device.json".replace("/", "-")
    return Path(plan.device_info).parents[1] / "dp" / name


def _provide(plan: PlannedAttachment) -> None:
    source, target = of_device_plugin(plan), Path(plan.device_info)
    text = _read(plan, source)
    if not text:
        return
    draft = target.with_name(f".{os.urandom(8).hex()}")  # the target's own name may be of the greatest length
    try:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        draft.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        _complain(plan, target, f"it can't be written: {error.strerror}")


def _recorded(plan: PlannedAttachment) -> str:
    return _read(plan, Path(plan.device_info))


def _withdraw(plan: PlannedAttachment) -> None:
    try:
        os.unlink(plan.device_info)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        _complain(plan, Path(plan.device_info), f"it can't be removed: {error.strerror}")


def _read(plan: PlannedAttachment, path: Path) -> str:
    """Return the text of the file; nothing, and a line in the log unless it is missing, for one that can't be used."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        _complain(plan, path, f"it can't be read: {error.strerror}")
        return ""
    if len(content) > MAX_BYTES:
        _complain(plan, path, f"it has more than {MAX_BYTES} bytes")
        return ""
    try:
        _DECODER.decode(content)
        return content.decode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        _complain(plan, path, str(error))
        return ""


def _complain(plan: PlannedAttachment, path: Path, reason: str) -> None:
    log.warning(
        "device_info_unusable",
        network=plan.network,
        ifname=plan.ifname,
        device=plan.device,
        file=str(path),
        reason=reason,
    )
