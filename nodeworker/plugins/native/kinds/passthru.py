"""The passthru plugin, which does nothing: the first plugin of a chain whose others only change interfaces.

Multus ships a binary of that name for its auxiliary chain; the native plugin needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.spec.results import Result
from nodeworker.plugins.spec.versions import ConfigError, at_least

TYPE = "passthru"

_INCOMPATIBLE = 1


def unsupported(config: Mapping[str, Any]) -> str:
    """Return an empty text: the plugin has no options."""
    return ""


def add(call: Call, ipam_result: Result | None) -> Result:
    """Return the previous result, or an empty one in the configuration's version, whatever *ipam_result* says.

    Raises NativeError for a version below 0.3.0, which has no empty result (CNI code 1).
    """
    if call.prev_result is not None:
        return call.prev_result
    version = str(call.config.get("cniVersion", ""))
    try:
        expressible = at_least(version, "0.3.0")
    except ConfigError as error:
        raise NativeError(str(error), _INCOMPATIBLE) from error
    if not expressible:
        raise NativeError(
            f"network {call.network} has cniVersion {version or 'none'}: passthru needs 0.3.0 or newer", _INCOMPATIBLE
        )
    return Result(cni_version=version)


def check(call: Call) -> None:
    """Do nothing: the plugin creates nothing."""


def delete(call: Call) -> None:
    """Do nothing: the plugin creates nothing."""
