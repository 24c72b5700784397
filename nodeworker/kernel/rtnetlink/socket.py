"""Talk to the kernel about the interfaces, addresses and routes of one network namespace.

Synchronous on purpose: rtnetlink does its work inside the sender's system call, and taking a link away holds it there
for 15 ms and more. So everything here runs on a thread that may block, never on the event loop.

What goes out together in one system call is carried out in order; a request that fails does not stop those after it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import ClassVar, Self

from msgspec.structs import replace

from events.schema import Phase
from nodeworker.kernel.namespaces import Namespace
from nodeworker.kernel.rtnetlink import message
from nodeworker.kernel.rtnetlink.message import (
    HEADER,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLMSG_DONE,
    NLMSG_ERROR,
    Answer,
    Request,
)

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_NLMSGERR_ATTR_MSG = 1

_BUFFER_BYTES = 32 * 1024
"""The kernel fills at most this much per message of a dump."""
_BATCH = 32
"""Requests per system call: the answers to all of them must fit the socket's queue."""
_PATIENCE = struct.pack("@ll", 10, 0)
"""Seconds and microseconds; the kernel has answered before the request's system call returns."""
_DUMP_ATTEMPTS = 10

_ERROR = struct.Struct("=i")


class NetlinkError(OSError):
    """The kernel refused a request; ``strerror`` is its own explanation where it gives one."""


class Netlink:
    """One netlink socket, in the namespace that it was opened in. A context manager; not for two threads at once."""

    protocol: ClassVar[int] = socket.NETLINK_ROUTE

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sequence = 0
        self._buffer = bytearray(_BUFFER_BYTES)

    @classmethod
    def on_node(cls) -> Self:
        """Return a socket in the namespace of the worker."""
        return cls(_socket(cls.protocol))

    @classmethod
    def within(cls, container: Namespace) -> Self:
        """Return a socket in the namespace of *container*. Raises RequestFailedError (namespace_invalid)."""
        return cls(container.inside(lambda: _socket(cls.protocol)))

    @classmethod
    def in_namespace(cls, path: str, phase: Phase) -> Self:
        """Return a socket in the network namespace at *path*, which is a container's.

        Raises RequestFailedError (namespace_invalid) if there is none, or if it is the node's own.
        """
        with Namespace(path, phase) as container:
            return cls.within(container)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def do(self, *requests: Request) -> None:
        """Carry out *requests*, in order, together.

        Raises NetlinkError for the first that failed and for which that was not ``fine``; those after it were tried.
        """
        for outcome in self.attempt(*requests):
            if outcome is not None:
                raise outcome

    def attempt(self, *requests: Request) -> list[NetlinkError | None]:
        """Carry out *requests*, in order, together, and return what became of each: None, or why it failed."""
        return [outcome for _, outcome in self._exchange(requests)]

    def ask(self, request: Request) -> Answer:
        """Return the answer to *request*. Raises NetlinkError."""
        return self.ask_all(request)[0]

    def ask_all(self, *requests: Request) -> list[Answer]:
        """Return the answer to each of *requests*, asked together. Raises NetlinkError for the first that failed."""
        answers: list[Answer] = []
        for answer, outcome in self._exchange(requests):
            if outcome is not None:
                raise outcome
            if answer is None:
                raise NetlinkError(errno.ENODATA, "the kernel gave no answer")
            answers.append(answer)
        return answers

    def look(self, *requests: Request) -> list[Answer | None]:
        """Return the answer to each of *requests*, asked together; None where there is no such thing (ENODEV).

        Raises NetlinkError for the first that failed otherwise.
        """
        answers: list[Answer | None] = []
        for answer, outcome in self._exchange(requests):
            if outcome is not None and outcome.errno != errno.ENODEV:
                raise outcome
            answers.append(answer)
        return answers

    def make(self, make: Request, ask: Request) -> tuple[NetlinkError | None, Answer | None]:
        """Carry out *make* and ask *ask*, together; return why *make* failed, and the answer if there is one."""
        (_, refused), (answer, _) = self._exchange((make, ask))
        return refused, answer

    def dump(self, request: Request) -> list[Answer]:
        """Return all objects that *request* asks for, as of one moment. Raises NetlinkError."""
        wanted = replace(request, flags=request.flags | message.NLM_F_DUMP)
        for _ in range(_DUMP_ATTEMPTS):
            answers = self._dump(wanted)
            if answers is not None:
                return answers
        raise NetlinkError(errno.EBUSY, "what was listed changed all the time")

    def _exchange(self, requests: tuple[Request, ...]) -> list[tuple[Answer | None, NetlinkError | None]]:
        outcomes: list[tuple[Answer | None, NetlinkError | None]] = []
        for start in range(0, len(requests), _BATCH):
            outcomes += self._batch(requests[start : start + _BATCH])
        return outcomes

    def _batch(self, requests: tuple[Request, ...]) -> list[tuple[Answer | None, NetlinkError | None]]:
        first = self._send(requests)
        answers: list[Answer | None] = [None] * len(requests)
        errors: list[NetlinkError | None] = [None] * len(requests)
        pending = set(range(len(requests)))
        while pending:
            for kind, flags, sequence, body in self._receive():
                place = sequence - first
                if place not in pending:
                    continue
                if kind == NLMSG_ERROR:
                    pending.discard(place)
                    refused = refusal(kind, body, flags)
                    if refused is not None and refused.errno not in requests[place].fine:
                        errors[place] = refused
                else:
                    answers[place] = Answer(kind, body)
        return list(zip(answers, errors, strict=True))

    def _dump(self, request: Request) -> list[Answer] | None:
        """Return the objects, or None if they changed meanwhile."""
        first = self._send((request,))
        answers: list[Answer] = []
        whole = True
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence != first:
                    continue
                whole = whole and not flags & message.NLM_F_DUMP_INTR
                if kind in {NLMSG_ERROR, NLMSG_DONE}:
                    refused = refusal(kind, body, flags)
                    if refused is not None:
                        raise refused
                    return answers if whole else None
                answers.append(Answer(kind, body))

    def _send(self, requests: tuple[Request, ...]) -> int:
        """Send *requests* together and return the sequence number of the first."""
        first = self._sequence + 1
        self._sequence += len(requests)
        self._socket.send(b"".join(message.packed(each, first + place) for place, each in enumerate(requests)))
        return first

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield type, flags, sequence and body of the messages that came with one system call."""
        try:
            size, (sender, _) = self._socket.recvfrom_into(self._buffer)
        except BlockingIOError:
            raise NetlinkError(errno.ETIMEDOUT, "the kernel did not answer") from None
        if sender != 0:
            return  # a container's own processes may send to a socket in their namespace
        start = 0
        while start + HEADER.size <= size:
            length, kind, flags, sequence, _ = HEADER.unpack_from(self._buffer, start)
            if length < HEADER.size or start + length > size:
                return
            yield kind, flags, sequence, bytes(self._buffer[start + HEADER.size : start + length])
            start += length + (-length % 4)


def _socket(protocol: int) -> socket.socket:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            with contextlib.suppress(OSError):  # older kernels answer the same, with fewer words
                connection.setsockopt(_SOL_NETLINK, option, 1)
        connection.bind((0, 0))
    except BaseException:
        connection.close()
        raise
    return connection


def refusal(kind: int, body: bytes, flags: int) -> NetlinkError | None:
    """Return the error in an acknowledgement or at the end of a dump, None if there is none."""
    code = -_ERROR.unpack_from(body)[0] if len(body) >= _ERROR.size else 0
    if not code:
        return None
    words = ""
    if flags & NLM_F_ACK_TLVS:
        start = _ERROR.size
        if kind == NLMSG_ERROR:  # the request comes first: its header, or all of it
            start += HEADER.size if flags & NLM_F_CAPPED else HEADER.unpack_from(body, start)[0]
        words = message.as_text(message.attributes(body, start + -start % 4).get(_NLMSGERR_ATTR_MSG))
    return NetlinkError(code, words or os.strerror(code))
