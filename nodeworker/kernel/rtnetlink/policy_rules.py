"""Requests that add, delete and list policy rules: which routing table the kernel searches for a packet's route."""

from __future__ import annotations

import errno
import ipaddress
import socket

import msgspec

from nodeworker.kernel import codec
from nodeworker.kernel.layouts import fibmsg, nl, rtnl
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.routes import TABLES_IN_HEADER, Network
from nodeworker.kernel.rtnetlink.socket import Netlink

_LAYOUT = codec.layout(fibmsg.fibmsg)
_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6})


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that leads to a table."""

    source: Network | None
    """The network that a packet has to come from; None: any."""
    table: int
    priority: int = 0
    """The kernel tries the lowest first. 0: the kernel chooses one before all rules but that of priority 0."""


def add(rule: Rule) -> Request:
    """Return the request that adds *rule*.

    The kernel refuses a second equal rule of the same priority, and accepts one of another priority.
    """
    return Request(rtnl.RTM_NEWRULE, nl.NLM_F_CREATE | nl.NLM_F_EXCL, _encode(rule))


def delete(rule: Rule) -> Request:
    """Return the request that deletes the first rule with everything that *rule* states; no rule is no error."""
    return Request(rtnl.RTM_DELRULE, 0, _encode(rule), frozenset({errno.ENOENT}))


def list_all(netlink: Netlink) -> list[Rule]:
    """Return the IPv4 and IPv6 rules that lead to a table, in the order in which the kernel tries them.

    Raises NetlinkError.
    """
    answers = netlink.dump(Request(rtnl.RTM_GETRULE, 0, _LAYOUT.encode({"family": socket.AF_UNSPEC})))
    rules = (_decode(answer.body) for answer in answers if answer.type == rtnl.RTM_NEWRULE)
    return [rule for rule in rules if rule is not None]


def _encode(rule: Rule) -> bytes:
    values: dict[str, object] = {"family": socket.AF_UNSPEC, "action": fibmsg.FR_ACT_TO_TBL}
    if rule.source is not None:
        values["family"] = socket.AF_INET if rule.source.version == 4 else socket.AF_INET6
        values["src_len"] = rule.source.prefixlen
        values["FRA_SRC"] = rule.source.network_address.packed
    if rule.priority:
        values["FRA_PRIORITY"] = rule.priority
    if 0 < rule.table < TABLES_IN_HEADER:
        values["table"] = rule.table
    else:
        values["FRA_TABLE"] = rule.table
    return _LAYOUT.encode(values)


def _decode(body: bytes) -> Rule | None:
    found = _LAYOUT.decode(body)
    if found["action"] != fibmsg.FR_ACT_TO_TBL or found["family"] not in _FAMILIES:
        return None
    source = found.get("FRA_SRC")
    return Rule(
        source=ipaddress.ip_network((source, found["src_len"])) if source else None,
        table=found.get("FRA_TABLE", found["table"]),
        priority=found.get("FRA_PRIORITY", 0),
    )
