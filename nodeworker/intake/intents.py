"""Turn the request of an entry point into the intent that the ledger gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from events.schema import (
    NO_SANDBOX,
    AttachRequested,
    ContainerId,
    Data,
    DetachRequested,
    ErrorClass,
    GcRequested,
    IfName,
    Phase,
    RequestId,
)
from nodeworker.deadline import deadline_in
from nodeworker.errors import failed, usable_container_id
from nodeworker.plugins.spec.cni_args import pod_of
from nodeworker.shim.frame import Frame


def intent_data(command: str, frame: Frame, *, spooled: bool = False) -> tuple[Data, ContainerId]:
    """Return the data of the intent for *frame*, and its sandbox. Raises RequestFailedError for an unknown command."""
    env = environment(frame)
    container_id = env.get("CNI_CONTAINERID", "")
    sandbox = ContainerId(container_id) if usable_container_id(container_id) else NO_SANDBOX
    common: dict[str, Any] = {
        "request": RequestId(frame.request),
        "config": frame.config,
        "path": env.get("CNI_PATH", ""),
        "deadline": "" if spooled else deadline_in(frame.seconds_left),
    }
    match command:
        case "ADD":
            return AttachRequested(**common, **_attachment(env)), sandbox
        case "DEL":
            return DetachRequested(**common, **_attachment(env), spooled=spooled), sandbox
        case "GC":
            return GcRequested(**common, valid=_valid_attachments(frame.stdin)), NO_SANDBOX
        case _:
            raise failed(
                ErrorClass.INVALID_REQUEST,
                Phase.INTAKE,
                f"CNI_COMMAND is {command!r}, not one of ADD, DEL, CHECK, GC, STATUS, VERSION",
            )


def environment(frame: Frame) -> dict[str, str]:
    """Return the frame's variables as valid Unicode: bytes that are no UTF-8 are replaced."""
    return {key: value.encode(errors="surrogateescape").decode(errors="replace") for key, value in frame.env.items()}


def _attachment(env: Mapping[str, str]) -> dict[str, Any]:
    args = env.get("CNI_ARGS", "")
    return {
        "ifname": IfName(env.get("CNI_IFNAME", "")),
        "netns": env.get("CNI_NETNS", ""),
        "args": args,
        "pod": pod_of(args),
    }


class _GcEntry(msgspec.Struct):
    container_id: str = msgspec.field(name="containerID")
    ifname: str


class _GcKeys(msgspec.Struct):
    valid: list[_GcEntry] | msgspec.UnsetType | None = msgspec.field(name="cni.dev/valid-attachments", default=UNSET)
    attachments: list[_GcEntry] | msgspec.UnsetType | None = msgspec.field(name="cni.dev/attachments", default=UNSET)


def _valid_attachments(stdin: bytes) -> tuple[tuple[str, str], ...] | None:
    """Return the runtime's list, None if it gave none. The second key is its name in drafts of the specification.

    Null is an empty list: CRI-O, written in Go, encodes the list of a node without pods so.
    """
    try:
        keys = msgspec.json.decode(stdin, type=_GcKeys)
    except msgspec.MsgspecError:
        return None  # whatever reads it as a configuration refuses it
    given = [entries for entries in (keys.valid, keys.attachments) if entries is not UNSET]
    if not given:
        return None
    return tuple((entry.container_id, entry.ifname) for entry in next(filter(None, given), ()))
