"""Requests that make, take away and list routing rules: which of the tables a packet's route is looked for in.

Layouts: the kernel's ``include/uapi/linux/fib_rules.h``.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct

import msgspec

from nodeworker.kernel.rtnetlink import message
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.routes import Network
from nodeworker.kernel.rtnetlink.socket import Netlink

RTM_NEWRULE = 32
RTM_DELRULE = 33
RTM_GETRULE = 34

FRA_SRC = 2
FRA_PRIORITY = 6
FRA_TABLE = 15

FR_ACT_TO_TBL = 1

_TABLES_IN_HEADER = 256
_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6})

_HEADER = struct.Struct("=BBBBBxxBI")
"""Family, length of destination and source, TOS, table, action, flags."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that leads to a table."""

    source: Network | None
    """Of the packets that it is for; None: it does not look at that."""
    table: int
    priority: int = 0
    """Rules are tried from the lowest on. 0 for the kernel's choice, which is before all but the rule of priority 0."""


def add(rule: Rule) -> Request:
    """Return the request that makes *rule*. Of the same priority there may be only one such; of others, more."""
    return Request(RTM_NEWRULE, message.NLM_F_CREATE | message.NLM_F_EXCL, _body(rule))


def delete(rule: Rule) -> Request:
    """Return the request that takes away the first rule that is like *rule* in all that it states; it may be gone."""
    return Request(RTM_DELRULE, 0, _body(rule), frozenset({errno.ENOENT}))


def every(netlink: Netlink) -> list[Rule]:
    """Return the rules of IPv4 and IPv6 that lead to a table, in the order in which they are tried.

    Raises NetlinkError.
    """
    answers = netlink.dump(Request(RTM_GETRULE, 0, _HEADER.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0)))
    return [rule for answer in answers if answer.type == RTM_NEWRULE and (rule := _described(answer.body)) is not None]


def _body(rule: Rule) -> bytes:
    family, length, body = socket.AF_UNSPEC, 0, b""
    if rule.source is not None:
        family = socket.AF_INET if rule.source.version == 4 else socket.AF_INET6
        length = rule.source.prefixlen
        body += message.attribute(FRA_SRC, rule.source.network_address.packed)
    if rule.priority:
        body += message.u32(FRA_PRIORITY, rule.priority)
    table = rule.table if rule.table < _TABLES_IN_HEADER else 0
    if not table:
        body += message.u32(FRA_TABLE, rule.table)
    return _HEADER.pack(family, 0, length, 0, table, FR_ACT_TO_TBL, 0) + body


def _described(body: bytes) -> Rule | None:
    family, _, length, _, table, action, _ = _HEADER.unpack_from(body)
    if action != FR_ACT_TO_TBL or family not in _FAMILIES:
        return None
    found = message.attributes(body, _HEADER.size)
    source = found.get(FRA_SRC)
    return Rule(
        source=ipaddress.ip_network((source, length)) if source else None,
        table=message.as_int(found.get(FRA_TABLE), table),
        priority=message.as_int(found.get(FRA_PRIORITY)),
    )
