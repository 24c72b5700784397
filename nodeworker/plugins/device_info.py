"""Device information files: pass the device plugin's to the CNI plugins, and record what they make of it.

No error here fails an attach or a detach: the file only informs programs in the pod, and a pod without it is better
than no pod (Device Information 1.1.0, a part of the NPWG specification).
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
"""Size of one file. All annotations of a pod together may have 256 KiB."""

log = structlog.get_logger(__name__)


class _Info(msgspec.Struct, frozen=True):
    type: Literal["pci", "vdpa", "vhost-user", "memif"]


_DECODER = msgspec.json.Decoder(_Info)


async def provide(plan: PlannedAttachment) -> None:
    """Copy the device plugin's file to where the plugins of *plan* look for it."""
    if plan.resource and plan.device and plan.device_info:
        await asyncio.to_thread(_provide, plan)


async def recorded(plan: PlannedAttachment) -> str:
    """Return the JSON text that the plugins of *plan* wrote; empty if there is no usable one."""
    return await asyncio.to_thread(_recorded, plan) if plan.device_info else ""


async def withdraw(plan: PlannedAttachment) -> None:
    """Remove the file of *plan*, if it is there."""
    if plan.device_info:
        await asyncio.to_thread(_withdraw, plan)


def write(path: str, text: str) -> None:
    """Create or replace the file at *path* at once. Blocking. Raises OSError."""
    target = Path(path)
    draft = target.with_name(f".{os.urandom(8).hex()}")  # the target's own name may be of the greatest length
    try:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        draft.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def of_device_plugin(plan: PlannedAttachment) -> Path:
    """Return the path of the device plugin's file about the device of *plan*."""
    name = f"{plan.resource}-{plan.device}-device.json".replace("/", "-")
    return Path(plan.device_info).parents[1] / "dp" / name


def _provide(plan: PlannedAttachment) -> None:
    source, target = of_device_plugin(plan), Path(plan.device_info)
    text = _read(plan, source)
    if not text:
        return
    try:
        write(plan.device_info, text)
    except OSError as error:
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
    """Return the text of the file; empty for one that is missing or, with a line in the log, unusable."""
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
