"""One exception for everything that makes a CNI request fail, and the CNI code that each class of failure has."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from events.schema import ErrorClass, Failure, Phase

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
    ErrorClass.LEDGER_UNAVAILABLE: 11,
    ErrorClass.LEDGER_FULL: 11,
    ErrorClass.ABANDONED: 11,
    ErrorClass.OVERTAKEN: 11,
    ErrorClass.INTERNAL: 103,
}
"""CNI specification 1.1, section 2, "Error": below 100 the specification's own; from 100 ours."""


class RequestFailedError(Exception):
    """A request can't be fulfilled; ``failure`` says it to people, tools and the runtime."""

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
    delegate: str = "",
    details: str = "",
    code: int | None = None,
) -> RequestFailedError:
    """Return the exception for one failure; *code* is a plugin's own, where there is one."""
    return RequestFailedError(
        Failure(
            error_class=error_class,
            phase=phase,
            message=message,
            code=CNI_CODES[error_class] if code is None else code,
            network=network,
            ifname=ifname,
            delegate=delegate,
            details=details,
        )
    )


def error_json(failure: Failure, cni_version: str) -> bytes:
    """Return the error object for the runtime (CNI specification 1.1, section 2, "Error")."""
    body = {"cniVersion": cni_version, "code": failure.code, "msg": failure.message}
    if failure.details:
        body["details"] = failure.details
    return msgspec.json.encode(body)
