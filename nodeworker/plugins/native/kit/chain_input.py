"""The input of a plugin that changes the interface of an earlier plugin in the chain."""

from __future__ import annotations

from nodeworker.kernel.rtnetlink.links import Link
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kit.addressing import Assignment, assignment
from nodeworker.plugins.native.kit.endpoints import Endpoints, find_link
from nodeworker.plugins.spec.results import IP, Result


def require_prev_result(call: Call) -> Result:
    """Return the result of the previous plugin. Raises NativeError if there is none."""
    if call.prev_result is None:
        raise NativeError(
            f"{call.config.get('type')} changes the interface {call.ifname} of other plugins, and prevResult is "
            "missing: put it behind them in the chain"
        )
    return call.prev_result


def find_chained_link(ends: Endpoints, call: Call) -> Link:
    """Return the interface that the previous plugins created. Raises NativeError if it is gone."""
    link = find_link(ends.container, call.ifname)
    if link is None:
        raise NativeError(
            f"the container has no interface {call.ifname}: an earlier plugin of the chain must create it"
        )
    return link


def own_addresses(call: Call, result: Result) -> list[Assignment]:
    """Return the addresses of *result* without those of other interfaces. Raises NativeError."""
    return [assignment(call, ip) for ip in result.ips if _owner(result, ip) in {None, call.ifname}]


def _owner(result: Result, ip: IP) -> str | None:
    """Return the name of the interface of *ip*, None if the result names none."""
    if ip.interface is None or not 0 <= ip.interface < len(result.interfaces):
        return None
    return result.interfaces[ip.interface].name
