"""The exception of a CNI request that fails, and the CNI code of each class of failure."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from events.ledger.ledger import LedgerError, LedgerFullError
from events.schema import ErrorClass, Failure, Phase, Pod

CNI_CODES: Mapping[ErrorClass, int] = {
    ErrorClass.UNSUPPORTED_VERSION: 1,
    ErrorClass.INVALID_REQUEST: 4,
    ErrorClass.INVALID_CONFIG: 7,
    ErrorClass.INVALID_ANNOTATION: 7,
    ErrorClass.NETWORK_NOT_FOUND: 7,
    ErrorClass.NETWORK_FORBIDDEN: 7,
    ErrorClass.POD_NOT_FOUND: 11,
    ErrorClass.POD_CHANGED: 11,
    ErrorClass.SOURCE_UNAVAILABLE: 11,
    ErrorClass.NAMESPACE_INVALID: 4,
    ErrorClass.INTERFACE_EXISTS: 7,
    ErrorClass.PLUGIN_MISSING: 101,
    ErrorClass.PLUGIN_FAILED: 100,
    ErrorClass.PLUGIN_TIMEOUT: 11,
    ErrorClass.PLUGIN_OUTPUT: 102,
    ErrorClass.ROUTE_FAILED: 104,
    ErrorClass.DEVICE_UNAVAILABLE: 11,
    ErrorClass.NODE_NOT_READY: 11,
    ErrorClass.API_REFUSED: 105,
    ErrorClass.NOT_REPAIRABLE: 106,
    ErrorClass.EVIDENCE_CHANGED: 107,
    ErrorClass.LEDGER_UNAVAILABLE: 11,
    ErrorClass.LEDGER_FULL: 11,
    ErrorClass.ABANDONED: 11,
    ErrorClass.OVERTAKEN: 11,
    ErrorClass.INTERNAL: 103,
    ErrorClass.UNKNOWN: 103,
}
"""CNI specification 1.1, section 2, "Error": codes below 100 are the specification's, from 100 Plumbline's."""

_LONGEST = 4096
"""Characters of a message. The text that it quotes, such as a plugin's output, may have a mebibyte."""

_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


class RequestFailedError(Exception):
    """A request can't be fulfilled; ``failure`` has the reason for people, tools and the runtime."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def failed(
    error_class: ErrorClass,
    phase: Phase,
    message: str,
    *,
    network: str = "",
    ifname: str = "",
    details: str = "",
    code: int | None = None,
) -> RequestFailedError:
    """Return the exception for one failure; *code* is a plugin's own, if it gave one.

    *message* names what of the request failed, but not its pod: see ``about``.
    """
    return RequestFailedError(
        Failure(
            error_class=error_class,
            phase=phase,
            message=_cut(message),
            code=CNI_CODES[error_class] if code is None else code,
            network=network,
            ifname=ifname,
            details=details,
        )
    )


def class_of(error: LedgerError) -> ErrorClass:
    """Return the class of the failure that *error* causes."""
    return ErrorClass.LEDGER_FULL if isinstance(error, LedgerFullError) else ErrorClass.LEDGER_UNAVAILABLE


def error_json(failure: Failure, cni_version: str) -> bytes:
    """Return the error object for the runtime (CNI specification 1.1, section 2, "Error")."""
    body = {"cniVersion": cni_version, "code": failure.code, "msg": failure.message}
    if failure.details:
        body["details"] = failure.details
    return msgspec.json.encode(body)


def about(subject: str, failure: Failure) -> Failure:
    """Return *failure* with *subject*, with which its message then begins; one that has a subject keeps it.

    Only this function puts the subject into a message. What fails knows neither pod nor sandbox, or leaves them out.
    """
    if failure.subject or not subject:
        return failure
    return replace(failure, subject=subject, message=_cut(f"{subject}: {failure.message}"))


def subject_of(pod: Pod, container_id: str) -> str:
    """Return the subject of a failure: the pod, or the sandbox if the runtime named no pod; empty without both."""
    if pod.name:
        return f"pod {pod}"
    return f"sandbox {container_id[:12]}" if container_id else ""


def internal(phase: Phase, error: Exception) -> Failure:
    """Return the failure for an error that is a bug in Plumbline."""
    return failed(
        ErrorClass.INTERNAL,
        phase,
        f"Plumbline made a mistake ({type(error).__name__}: {error}): its log says where; please report it",
    ).failure


def _cut(message: str) -> str:
    return message if len(message) <= _LONGEST else f"{message[: _LONGEST - 1]}…"


def usable_container_id(text: str) -> bool:
    """Return whether *text* can be a container ID (CNI specification 1.1, section 2, "Parameters")."""
    return _CONTAINER_ID.fullmatch(text) is not None


def unusable_container_id(phase: Phase) -> RequestFailedError:
    """Return the exception for a request that names no usable container ID."""
    return failed(
        ErrorClass.INVALID_REQUEST,
        phase,
        "CNI_CONTAINERID is missing, or is not a letter or digit followed by letters, digits and any of ._-",
    )
