"""Requests that create, read and delete packet filter rules; the kernel carries out several of them together or none.

Comments are those that ``nft`` writes and lists.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from nodeworker.kernel import codec, wire
from nodeworker.kernel.layouts import nfnetlink, nftsocket, nl
from nodeworker.kernel.nftables.expressions import Expression
from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.socket import Netlink, NetlinkError, error_in_ack

PRE_ROUTING, POST_ROUTING = 0, 4
"""Hooks (``NF_INET_PRE_ROUTING``, ``NF_INET_POST_ROUTING``, which pyroute2 has no names for)."""
ACCEPT: Final = next(
    number for number, name in nftsocket.nft_data.nfta_data.verdict.verdict_code.ops.items() if name == "NF_ACCEPT"
)
"""The verdict on a packet that no rule of a chain decides on."""

_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
"""Message types (``NFNL_MSG_BATCH_BEGIN``, ``NFNL_MSG_BATCH_END``, which pyroute2 has no names for)."""
_SUBSYSTEM: Final = nfnetlink.NFNL_SUBSYS_NFTABLES
_COMMENT = 0
"""The type of a comment in a rule's user data (``NFTNL_UDATA_RULE_COMMENT``)."""

_TABLE = codec.layout(nftsocket.nft_table_msg)
_CHAIN = codec.layout(nftsocket.nft_chain_msg)
_RULE = codec.layout(nftsocket.nft_rule_msg)
_GENERATION = codec.layout(nftsocket.nft_gen_msg)

_ATTEMPTS = 10
_OVERTAKEN = frozenset({errno.ENOENT, errno.EBUSY, errno.EEXIST})
"""Errors of a transaction that was planned on rules which another process has changed since."""
_LACKING = frozenset({errno.EPROTONOSUPPORT, errno.EOPNOTSUPP})
"""Errors of a kernel without netfilter's sockets, and of a transaction in one without nf_tables."""
_NOTHING = _LACKING | {errno.ENOENT, errno.EINVAL, errno.EAFNOSUPPORT}
"""Errors of a query for a missing table, and of a query in a kernel without nf_tables, or without that family."""


class Chain(msgspec.Struct, frozen=True):
    """A chain of rules, by its name."""

    family: int
    table: str
    name: str


class Rule(msgspec.Struct, frozen=True):
    """A rule of the kernel's."""

    handle: int
    comment: str
    expressions: bytes = b""


class Rules(Protocol):
    """A source of rules."""

    def rules(self, chain: Chain) -> list[Rule]:
        """Return the rules of *chain*; none if the chain does not exist. Raises NetlinkError."""
        ...


class Nftables(Netlink):
    """A socket for the packet filter of the namespace that it was opened in."""

    protocol = nl.NETLINK_NETFILTER

    @classmethod
    def on_node(cls) -> Nftables:
        """Return a socket in the worker's namespace.

        Where the kernel has no such sockets, it finds no rules and refuses every change. Raises OSError.
        """
        try:
            return super().on_node()
        except OSError as error:
            if error.errno not in _LACKING:
                raise
            return _Lacking()

    def commit(self, *requests: Request) -> None:
        """Send *requests* as one transaction, all or none. Raises NetlinkError for the first that failed."""
        try:
            self._commit(requests)
        except NetlinkError as error:
            if error.errno not in _LACKING:
                raise
            words = f"this node's kernel has no nf_tables ({error.strerror}): load its modules"
            raise NetlinkError(error.errno, words) from error

    def _commit(self, requests: Sequence[Request]) -> None:
        body = _GENERATION.encode({"nfgen_family": socket.AF_UNSPEC, "res_id": _SUBSYSTEM})
        begin = Request(_BATCH_BEGIN, 0, body)
        end = Request(_BATCH_END, 0, body)
        first = self._send((begin, *requests, end)) + 1
        errors: dict[int, NetlinkError | None] = {}
        while len(errors) < len(requests):
            for kind, flags, sequence, answer in self._receive():
                if kind != nl.NLMSG_ERROR or not first - 1 <= sequence <= first + len(requests):
                    continue
                refused = error_in_ack(kind, answer, flags)
                if first <= sequence < first + len(requests):
                    errors[sequence] = refused
                elif refused is not None:  # older kernels acknowledge neither beginning nor end
                    raise refused
        for _, refused in sorted(errors.items()):
            if refused is not None:
                raise refused

    def commit_planned(self, plan: Callable[[], Sequence[Request]]) -> None:
        """Commit the requests that *plan* returns, if any; plan again if another process changed the rules meanwhile.

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
        """Return the rules of *chain*; none if the chain does not exist. Raises NetlinkError."""
        try:
            answers = self.dump(Request(message_type(nftsocket.NFT_MSG_GETRULE), 0, _RULE.encode(_rule_place(chain))))
        except NetlinkError as error:
            if error.errno in _NOTHING:
                return []
            raise
        new_rule = message_type(nftsocket.NFT_MSG_NEWRULE)
        return [_decode_rule(answer.body) for answer in answers if answer.type == new_rule]

    def has_chain(self, chain: Chain) -> bool:
        """Return whether *chain* exists. Raises NetlinkError."""
        return self._exists(Request(message_type(nftsocket.NFT_MSG_GETCHAIN), 0, _CHAIN.encode(_chain_name(chain))))

    def has_table(self, family: int, name: str) -> bool:
        """Return whether the table *name* exists. Raises NetlinkError."""
        return self._exists(_get_table(family, name))

    def is_supported(self) -> bool:
        """Return whether the kernel has nf_tables. Raises NetlinkError."""
        try:
            self.ask(_get_table(nftsocket.NFPROTO_IPV4, "-"))
        except NetlinkError as error:
            if error.errno not in _NOTHING:
                raise
            return error.errno == errno.ENOENT
        return True

    def generation(self) -> int | None:
        """Return a number that changes with every change of any rule; None without nf_tables. Raises NetlinkError."""
        try:
            answer = self.ask(Request(message_type(nftsocket.NFT_MSG_GETGEN), 0, _GENERATION.encode({})))
        except NetlinkError as error:
            if error.errno in _NOTHING:
                return None
            raise
        return _GENERATION.decode(answer.body).get("NFTA_GEN_ID", 0)

    def _exists(self, query: Request) -> bool:
        try:
            self.ask(query)
        except NetlinkError as error:
            if error.errno in _NOTHING:
                return False
            raise
        return True


class _Lacking(Nftables):
    """Stands in for the socket that the kernel does not have, and refuses every request."""

    def __init__(self) -> None:
        pass

    def close(self) -> None:
        """Do nothing: there is no socket."""

    def _send(self, requests: tuple[Request, ...]) -> int:
        raise NetlinkError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))


def table(family: int, name: str, comment: str = "") -> Request:
    """Return the request that creates the table *name*; an existing one is no error."""
    values = {"nfgen_family": family, "NFTA_TABLE_NAME": name, "NFTA_TABLE_USERDATA": comment or None}
    return Request(message_type(nftsocket.NFT_MSG_NEWTABLE), nl.NLM_F_CREATE, _TABLE.encode(values))


def chain(chain: Chain, comment: str = "") -> Request:
    """Return the request that creates *chain*; an existing one is no error."""
    body = _CHAIN.encode({**_chain_name(chain), "NFTA_CHAIN_USERDATA": comment or None})
    return Request(message_type(nftsocket.NFT_MSG_NEWCHAIN), nl.NLM_F_CREATE, body)


def base_chain(chain: Chain, kind: str, hook: int, priority: int, *, policy: int | None = None) -> Request:
    """Return the request that creates *chain*, which packets pass at *hook*; an existing one is no error."""
    body = _CHAIN.encode(
        {
            **_chain_name(chain),
            "NFTA_CHAIN_HOOK": {"NFTA_HOOK_HOOKNUM": hook, "NFTA_HOOK_PRIORITY": priority},
            "NFTA_CHAIN_TYPE": kind,
            "NFTA_CHAIN_POLICY": policy,
        }
    )
    return Request(message_type(nftsocket.NFT_MSG_NEWCHAIN), nl.NLM_F_CREATE, body)


def delete_chain(chain: Chain) -> Request:
    """Return the request that deletes *chain* with its rules, if no other rule leads there."""
    return Request(message_type(nftsocket.NFT_MSG_DELCHAIN), 0, _CHAIN.encode(_chain_name(chain)))


def flush(chain: Chain) -> Request:
    """Return the request that deletes all rules of *chain*."""
    return Request(DELETE_RULE, 0, _RULE.encode(_rule_place(chain)))


def rule(chain: Chain, *expressions: Expression, comment: str = "") -> Request:
    """Return the request that appends a rule to *chain*."""
    body = _RULE.encode(
        {**_rule_place(chain), "NFTA_RULE_EXPRESSIONS": expressions, "NFTA_RULE_USERDATA": comment or None}
    )
    return Request(message_type(nftsocket.NFT_MSG_NEWRULE), nl.NLM_F_CREATE | nl.NLM_F_APPEND, body)


def delete_rule(chain: Chain, rule: Rule) -> Request:
    """Return the request that deletes *rule* of *chain*."""
    return Request(DELETE_RULE, 0, _RULE.encode({**_rule_place(chain), "NFTA_RULE_HANDLE": rule.handle}))


def rule_place(body: bytes) -> tuple[str, str]:
    """Return the names of the table and the chain of the rule in the kernel's message *body*."""
    found = _RULE.decode(body)
    return found.get("NFTA_RULE_TABLE", ""), found.get("NFTA_RULE_CHAIN", "")


def message_type(number: int) -> int:
    """Return the type of the nf_tables message *number*."""
    return nfnetlink.NFNL_SUBSYS_NFTABLES << 8 | number


DELETE_RULE: Final = message_type(nftsocket.NFT_MSG_DELRULE)


def _get_table(family: int, name: str) -> Request:
    body = _TABLE.encode({"nfgen_family": family, "NFTA_TABLE_NAME": name})
    return Request(message_type(nftsocket.NFT_MSG_GETTABLE), 0, body)


def _chain_name(chain: Chain) -> codec.Values:
    return {"nfgen_family": chain.family, "NFTA_CHAIN_TABLE": chain.table, "NFTA_CHAIN_NAME": chain.name}


def _rule_place(chain: Chain) -> codec.Values:
    return {"nfgen_family": chain.family, "NFTA_RULE_TABLE": chain.table, "NFTA_RULE_CHAIN": chain.name}


def _decode_rule(body: bytes) -> Rule:
    found = _RULE.decode(body)
    return Rule(
        handle=found.get("NFTA_RULE_HANDLE", 0),
        comment=_comment(found.raw("NFTA_RULE_USERDATA")),
        expressions=found.raw("NFTA_RULE_EXPRESSIONS"),
    )


def _comment(user_data: bytes) -> str:
    """Return the comment in *user_data*; pyroute2 reads it only if it comes first."""
    while len(user_data) > 1:
        kind, length = user_data[0], user_data[1]
        if kind == _COMMENT:
            return wire.as_text(user_data[2 : 2 + length])
        user_data = user_data[2 + length :]
    return ""
