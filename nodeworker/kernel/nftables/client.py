"""Requests that make and take away packet filter rules, of which several are carried out together or not at all.

Comments are laid out as ``nft`` does it, so that whoever looks for a rule by its comment finds it. Layouts: the
kernel's ``include/uapi/linux/netfilter/nf_tables.h`` and ``nfnetlink.h``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from nodeworker.kernel.nftables.expressions import Expression
from nodeworker.kernel.rtnetlink import message
from nodeworker.kernel.rtnetlink.message import NLMSG_ERROR, Request
from nodeworker.kernel.rtnetlink.socket import Netlink, NetlinkError, refusal

INET, IPV4, BRIDGE, IPV6 = 1, 2, 7, 10
"""Families of tables (``NFPROTO_…``)."""
PRE_ROUTING, POST_ROUTING = 0, 4
"""Places on a packet's way."""
ACCEPT = 1
"""The verdict on a packet that no rule of a chain has one for."""

_NETFILTER = 12
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _GET_TABLE, _NEW_CHAIN, _GET_CHAIN, _DELETE_CHAIN, _NEW_RULE, _GET_RULE, DELETE_RULE, _GET_GENERATION = (
    _SUBSYSTEM << 8 | number for number in (0, 1, 3, 4, 5, 6, 7, 8, 16)
)

_TABLE_NAME, _TABLE_USERDATA = 1, 6
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE, _CHAIN_USERDATA = 1, 3, 4, 5, 7, 12
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 3, 4, 7
_GENERATION_ID = 1
_LIST_ELEMENT = 1
_USERDATA_COMMENT = 0

_HEADER = struct.Struct("!BBH")
"""Family, version, resource."""
_U32 = struct.Struct("!I")
_I32 = struct.Struct("!i")
_U64 = struct.Struct("!Q")

_ATTEMPTS = 10
_OVERTAKEN = frozenset({errno.ENOENT, errno.EBUSY, errno.EEXIST})
"""What a change ends with that was planned on what somebody else has changed since."""
_LACKING = frozenset({errno.EPROTONOSUPPORT, errno.EOPNOTSUPP})
"""What everything ends with on a kernel without netfilter's sockets, and a change on one without nf_tables."""
_NOTHING = _LACKING | {errno.ENOENT, errno.EINVAL, errno.EAFNOSUPPORT}
"""What a look ends with where there is no such table, and on a kernel that has no nf_tables, or not for the family."""


class Chain(msgspec.Struct, frozen=True):
    """A chain of rules, by its name."""

    family: int
    table: str
    name: str


class Rule(msgspec.Struct, frozen=True):
    """A rule as the kernel has it."""

    handle: int
    comment: str
    expressions: bytes = b""


class Rules(Protocol):
    """Who knows the rules."""

    def rules(self, chain: Chain) -> list[Rule]:
        """Return the rules of *chain*: none if there is no such chain. Raises NetlinkError."""
        ...


class Nftables(Netlink):
    """A socket for the packet filter of the namespace that it was opened in."""

    protocol = _NETFILTER

    @classmethod
    def on_node(cls) -> Nftables:
        """Return a socket in the namespace of the worker.

        Where the kernel offers none it is one by which there is nothing, and nothing can be made. Raises OSError.
        """
        try:
            return super().on_node()
        except OSError as error:
            if error.errno not in _LACKING:
                raise
            return _Lacking()

    def commit(self, *requests: Request) -> None:
        """Carry out all *requests*, in order, or none of them. Raises NetlinkError for the first that failed."""
        try:
            self._commit(requests)
        except NetlinkError as error:
            if error.errno not in _LACKING:
                raise
            words = f"this node's kernel offers no nf_tables ({error.strerror}): load its modules"
            raise NetlinkError(error.errno, words) from error

    def _commit(self, requests: Sequence[Request]) -> None:
        begin = Request(_BATCH_BEGIN, 0, _HEADER.pack(socket.AF_UNSPEC, 0, _SUBSYSTEM))
        end = Request(_BATCH_END, 0, begin.body)
        first = self._send((begin, *requests, end)) + 1
        errors: dict[int, NetlinkError | None] = {}
        while len(errors) < len(requests):
            for kind, flags, sequence, body in self._receive():
                if kind != NLMSG_ERROR or not first - 1 <= sequence <= first + len(requests):
                    continue
                refused = refusal(kind, body, flags)
                if first <= sequence < first + len(requests):
                    errors[sequence] = refused
                elif refused is not None:  # older kernels acknowledge neither beginning nor end
                    raise refused
        for _, refused in sorted(errors.items()):
            if refused is not None:
                raise refused

    def agree(self, plan: Callable[[], Sequence[Request]]) -> None:
        """Commit what *plan* returns, if anything, and anew if somebody else changed what that was planned on.

        Raises NetlinkError.
        """
        for attempt in range(_ATTEMPTS):
            try:
                if requests := plan():
                    self.commit(*requests)
            except NetlinkError as error:
                if error.errno not in _OVERTAKEN or attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def rules(self, chain: Chain) -> list[Rule]:
        """Return the rules of *chain*: none if there is no such chain. Raises NetlinkError."""
        wanted = message.text(_RULE_TABLE, chain.table) + message.text(_RULE_CHAIN, chain.name)
        try:
            answers = self.dump(Request(_GET_RULE, 0, _header(chain.family) + wanted))
        except NetlinkError as error:
            if error.errno in _NOTHING:
                return []
            raise
        return [_rule(answer.body) for answer in answers if answer.type == _NEW_RULE]

    def has(self, chain: Chain) -> bool:
        """Return whether there is *chain*. Raises NetlinkError."""
        return self._knows(Request(_GET_CHAIN, 0, _named(chain)))

    def has_table(self, family: int, name: str) -> bool:
        """Return whether there is the table *name*. Raises NetlinkError."""
        return self._knows(Request(_GET_TABLE, 0, _header(family) + message.text(_TABLE_NAME, name)))

    def offered(self) -> bool:
        """Return whether the kernel has nf_tables. Raises NetlinkError."""
        try:
            self.ask(Request(_GET_TABLE, 0, _header(IPV4) + message.text(_TABLE_NAME, "-")))
        except NetlinkError as error:
            if error.errno not in _NOTHING:
                raise
            return error.errno == errno.ENOENT
        return True

    def generation(self) -> int | None:
        """Return a number that is another after each change of any rule; None: nobody counts. Raises NetlinkError."""
        try:
            answer = self.ask(Request(_GET_GENERATION, 0, _header(socket.AF_UNSPEC)))
        except NetlinkError as error:
            if error.errno in _NOTHING:
                return None
            raise
        return int.from_bytes(message.attributes(answer.body, _HEADER.size).get(_GENERATION_ID, b""), "big")

    def _knows(self, wanted: Request) -> bool:
        try:
            self.ask(wanted)
        except NetlinkError as error:
            if error.errno in _NOTHING:
                return False
            raise
        return True


class _Lacking(Nftables):
    """Stands in for the socket that the kernel does not offer: it refuses everything."""

    def __init__(self) -> None:
        pass

    def close(self) -> None:
        """There is nothing to close."""

    def _send(self, requests: tuple[Request, ...]) -> int:
        raise NetlinkError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))


def table(family: int, name: str, comment: str = "") -> Request:
    """Return the request for the table *name*, which may be there."""
    return Request(
        _NEW_TABLE,
        message.NLM_F_CREATE,
        _header(family) + message.text(_TABLE_NAME, name) + _comment(_TABLE_USERDATA, comment),
    )


def chain(wanted: Chain, comment: str = "") -> Request:
    """Return the request for the chain *wanted*, which may be there."""
    return Request(_NEW_CHAIN, message.NLM_F_CREATE, _named(wanted) + _comment(_CHAIN_USERDATA, comment))


def base_chain(wanted: Chain, kind: str, hook: int, priority: int, *, policy: int | None = None) -> Request:
    """Return the request for the chain *wanted*, which packets pass at *hook*; it may be there."""
    place = message.attribute(_HOOK_NUMBER, _U32.pack(hook)) + message.attribute(_HOOK_PRIORITY, _I32.pack(priority))
    body = _named(wanted) + message.nested(_CHAIN_HOOK, place) + message.text(_CHAIN_TYPE, kind)
    if policy is not None:
        body += _number(_CHAIN_POLICY, policy)
    return Request(_NEW_CHAIN, message.NLM_F_CREATE, body)


def delete_chain(unwanted: Chain) -> Request:
    """Return the request that takes the chain *unwanted* away with its rules, if no other rule leads there."""
    return Request(_DELETE_CHAIN, 0, _named(unwanted))


def flush(of: Chain) -> Request:
    """Return the request that takes all rules of a chain away."""
    return Request(DELETE_RULE, 0, _ruled(of))


def rule(to: Chain, *expressions: Expression, comment: str = "") -> Request:
    """Return the request that appends a rule to a chain."""
    elements = (message.nested(_LIST_ELEMENT, each) for each in expressions)
    body = _ruled(to) + message.nested(_RULE_EXPRESSIONS, *elements) + _comment(_RULE_USERDATA, comment)
    return Request(_NEW_RULE, message.NLM_F_CREATE | message.NLM_F_APPEND, body)


def delete_rule(of: Chain, unwanted: Rule) -> Request:
    """Return the request that takes the rule *unwanted* of a chain away."""
    return Request(DELETE_RULE, 0, _ruled(of) + message.attribute(_RULE_HANDLE, _U64.pack(unwanted.handle)))


def place_of(body: bytes) -> tuple[str, str]:
    """Return the names of table and chain of the rule that a message with *body* tells of."""
    found = message.attributes(body, _HEADER.size)
    return message.as_text(found.get(_RULE_TABLE)), message.as_text(found.get(_RULE_CHAIN))


def _header(family: int) -> bytes:
    return _HEADER.pack(family, 0, 0)


def _named(wanted: Chain) -> bytes:
    return _header(wanted.family) + message.text(_CHAIN_TABLE, wanted.table) + message.text(_CHAIN_NAME, wanted.name)


def _ruled(of: Chain) -> bytes:
    return _header(of.family) + message.text(_RULE_TABLE, of.table) + message.text(_RULE_CHAIN, of.name)


def _number(kind: int, value: int) -> bytes:
    return message.attribute(kind, _U32.pack(value))


def _comment(kind: int, comment: str) -> bytes:
    """Return *comment* as ``nft`` keeps it: type, length, text with a zero byte."""
    text = comment.encode() + b"\0"
    return message.attribute(kind, bytes([_USERDATA_COMMENT, len(text)]) + text) if comment else b""


def _rule(body: bytes) -> Rule:
    found = message.attributes(body, _HEADER.size)
    kept = found.get(_RULE_USERDATA, b"")
    comment = ""
    while len(kept) > 1:
        kind, length = kept[0], kept[1]
        if kind == _USERDATA_COMMENT:
            comment = message.as_text(kept[2 : 2 + length])
        kept = kept[2 + length :]
    handle = int.from_bytes(found.get(_RULE_HANDLE, b""), "big")
    return Rule(handle=handle, comment=comment, expressions=found.get(_RULE_EXPRESSIONS, b""))
