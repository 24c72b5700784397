"""Requests that change the packet filter, and the socket that carries out many of them at once or none at all.

Only what native plugins need: tables, chains and rules, whose parts are in ``expressions``. A rule has no name; whoever
wants to find his own again gives it a comment.

Layouts: the kernel's ``include/uapi/linux/netfilter/nfnetlink.h`` and ``nf_tables.h``. Numbers are in network order.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterable
from typing import ClassVar

import msgspec

from nodeworker.netlink import message
from nodeworker.netlink.message import NLMSG_ERROR, Answer, Request
from nodeworker.netlink.socket import Netlink, NetlinkError, refusal

INET = 1
"""The family of tables that see IPv4 and IPv6."""
BRIDGE = 7

PREROUTING = 0
"""Of ``INET`` and ``BRIDGE``."""
POSTROUTING = 4
"""Of ``INET``."""

COMMENT_BYTES = 128
"""The longest comment that ``nft`` takes."""

_NETLINK_NETFILTER = 12
_NFTABLES = 10
_BATCH_BEGIN = 0x10
_BATCH_END = 0x11
_NEWTABLE = 0
_NEWCHAIN, _GETCHAIN, _DELCHAIN = 3, 4, 5
_NEWRULE, _GETRULE, _DELRULE = 6, 7, 8
_NLM_F_APPEND = 0x800
_ATTEMPTS = 3

_TABLE_NAME, _TABLE_USERDATA = 1, 6
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_TYPE, _CHAIN_USERDATA = 1, 3, 4, 7, 12
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 3, 4, 7
_COMMENT = 0

_HEADER = struct.Struct("!BBH")
"""Family, version, subsystem of a batch."""
_I32 = struct.Struct("!i")
_U64 = struct.Struct("!Q")


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """A list of rules in a table."""

    family: int
    table: str
    name: str


class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """Where packets come into a chain from outside of its table."""

    type: str
    """``filter`` or ``nat``."""
    number: int
    priority: int


class Nftables(Netlink):
    """A socket to the packet filter of the namespace that it was opened in.

    Closing it waits until the kernel has destroyed what anybody has just taken away, for 15 ms and more.
    """

    protocol: ClassVar[int] = _NETLINK_NETFILTER

    def commit(self, *changes: Request) -> None:
        """Carry out all of *changes* at once. Raises NetlinkError for the first that is refused; then none is made."""
        if changes:
            self._transaction((_BEGIN, *changes, _END), len(changes))

    def amend(self, plan: Callable[[], Iterable[Request]]) -> None:
        """Commit what *plan* makes of what it finds, anew if somebody took that away meanwhile. Raises NetlinkError."""
        for attempt in range(_ATTEMPTS):
            try:
                return self.commit(*plan())
            except NetlinkError as error:
                if error.errno != errno.ENOENT or attempt == _ATTEMPTS - 1:
                    raise
        return None

    def rehearse(self, *changes: Request) -> None:
        """Raise what ``commit`` would raise, and change nothing."""
        self._transaction((_BEGIN, *changes), len(changes))  # what has no end is given up after it was looked at

    def _transaction(self, requests: tuple[Request, ...], changes: int) -> None:
        first = self._send(requests)
        pending = set(range(first + 1, first + 1 + changes))
        refused: dict[int, NetlinkError] = {}
        while pending:
            for kind, flags, sequence, body in self._receive():
                error = refusal(kind, body, flags) if kind == NLMSG_ERROR else None
                if error is not None and sequence == first:
                    raise error  # of the whole
                if error is not None and sequence in pending:
                    refused[sequence] = error
                pending.discard(sequence)
        if refused:
            raise refused[min(refused)]


def add_table(family: int, name: str, *, comment: str = "") -> Request:
    """Return the change that makes the table *name*; it may be there."""
    return _request(
        _NEWTABLE, family, message.text(_TABLE_NAME, name), _userdata(_TABLE_USERDATA, comment), message.NLM_F_CREATE
    )


def add_chain(chain: Chain, *, hook: Hook | None = None, comment: str = "") -> Request:
    """Return the change that makes *chain*; it may be there, with the same *hook*."""
    body = _named(chain)
    if hook is not None:
        place = (
            message.attribute(_HOOK_NUMBER, _I32.pack(hook.number)),
            message.attribute(_HOOK_PRIORITY, _I32.pack(hook.priority)),
        )
        body += message.nested(_CHAIN_HOOK, *place) + message.text(_CHAIN_TYPE, hook.type)
    return _request(_NEWCHAIN, chain.family, body, _userdata(_CHAIN_USERDATA, comment), message.NLM_F_CREATE)


def delete_chain(chain: Chain) -> Request:
    """Return the change that takes *chain* away, with its rules; no rule of another may lead to it."""
    return _request(_DELCHAIN, chain.family, _named(chain))


def add_rule(chain: Chain, *expressions: bytes, comment: str = "") -> Request:
    """Return the change that puts a rule at the end of *chain*: the last of *expressions* is for what matches the rest.

    A *comment* that is longer than ``COMMENT_BYTES`` is cut.
    """
    rule = message.nested(_RULE_EXPRESSIONS, *expressions)
    flags = message.NLM_F_CREATE | _NLM_F_APPEND
    return _request(_NEWRULE, chain.family, _of(chain) + rule, _userdata(_RULE_USERDATA, comment), flags)


def delete_rule(chain: Chain, handle: int) -> Request:
    """Return the change that takes the rule *handle* out of *chain*."""
    return _request(_DELRULE, chain.family, _of(chain) + message.attribute(_RULE_HANDLE, _U64.pack(handle)))


def empty(chain: Chain) -> Request:
    """Return the change that takes all rules out of *chain*."""
    return _request(_DELRULE, chain.family, _of(chain))


def exists(nftables: Nftables, chain: Chain) -> bool:
    """Return whether there is such a chain. Raises NetlinkError."""
    try:
        nftables.ask(_request(_GETCHAIN, chain.family, _named(chain)))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def comments(nftables: Nftables, chain: Chain, start: str = "") -> dict[int, str]:
    """Return the comments of the rules of *chain*, by their handles, if they begin with *start*; there may be no chain.

    A rule without a comment has an empty one. Raises NetlinkError.
    """
    sought = start.encode()
    answers = nftables.dump(_request(_GETRULE, chain.family, _of(chain)))
    found = dict(_commented(answer) for answer in answers if sought in answer.body)
    return {handle: comment for handle, comment in found.items() if comment.startswith(start)}


def _request(kind: int, family: int, body: bytes, more: bytes = b"", flags: int = 0) -> Request:
    return Request(_NFTABLES << 8 | kind, flags, _HEADER.pack(family, 0, 0) + body + more)


def _named(chain: Chain) -> bytes:
    return message.text(_CHAIN_TABLE, chain.table) + message.text(_CHAIN_NAME, chain.name)


def _of(chain: Chain) -> bytes:
    return message.text(_RULE_TABLE, chain.table) + message.text(_RULE_CHAIN, chain.name)


def _userdata(kind: int, comment: str) -> bytes:
    """Return *comment* in the attribute that the kernel keeps without a look at it, laid out as ``nft`` does."""
    if not comment:
        return b""
    text = comment.encode()[:COMMENT_BYTES] + b"\0"
    return message.attribute(kind, bytes([_COMMENT, len(text)]) + text)


def _commented(answer: Answer) -> tuple[int, str]:
    """Return the handle of a rule and its comment, empty if it has none."""
    found = message.attributes(answer.body, _HEADER.size)
    handle: int = _U64.unpack(found[_RULE_HANDLE])[0]
    data = found.get(_RULE_USERDATA, b"")
    start = 0
    while start + 2 <= len(data):
        kind, length = data[start : start + 2]
        if kind == _COMMENT:
            return handle, message.as_text(data[start + 2 : start + 2 + length])
        start += 2 + length
    return handle, ""


_BEGIN = Request(_BATCH_BEGIN, 0, _HEADER.pack(socket.AF_UNSPEC, 0, _NFTABLES))
_END = Request(_BATCH_END, 0, _HEADER.pack(socket.AF_UNSPEC, 0, _NFTABLES))
