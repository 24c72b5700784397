"""A socket for the interfaces, addresses, routes and rules of one network namespace.

It is synchronous: rtnetlink works inside the sender's system call, and the deletion of a link blocks the caller for
15 ms and more. So its users run on threads that may block, never on the event loop.

pyroute2's sockets lack what this one does. It sends several requests in one system call, which the kernel carries out
in order even if one of them fails. And it reports the kernel's own sentence about a failure.
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
from nodeworker.kernel import codec
from nodeworker.kernel.layouts import nl
from nodeworker.kernel.namespaces import Namespace
from nodeworker.kernel.rtnetlink import message
from nodeworker.kernel.rtnetlink.message import HEADER, Answer, Request

_NETLINK_CAP_ACK = 10
"""An option that pyroute2 has no name for: acknowledgements do not repeat the request."""

_BUFFER_BYTES = 32 * 1024
"""The kernel fills at most this much per message of a dump."""
_BATCH = 32
"""Requests per system call: the answers to all of them must fit the socket's queue."""
_TIMEOUT = struct.pack("@ll", 10, 0)
"""Seconds and microseconds; the kernel has answered before the request's system call returns."""
_DUMP_ATTEMPTS = 10

_ERROR = codec.layout(nl.nlmsgerr)


class NetlinkError(OSError):
    """The kernel refused a request; ``strerror`` is the kernel's sentence where it gives one."""


class Netlink:
    """One netlink socket, in the namespace that it was opened in. A context manager; for one thread at a time."""

    protocol: ClassVar[int] = socket.NETLINK_ROUTE

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sequence = 0
        self._buffer = bytearray(_BUFFER_BYTES)

    @classmethod
    def on_node(cls) -> Self:
        """Return a socket in the worker's namespace."""
        return cls(_socket(cls.protocol))

    @classmethod
    def within(cls, container: Namespace) -> Self:
        """Return a socket in the namespace of *container*. Raises RequestFailedError (namespace_invalid)."""
        return cls(container.run_inside(lambda: _socket(cls.protocol)))

    @classmethod
    def in_namespace(cls, path: str, phase: Phase) -> Self:
        """Return a socket in the container's network namespace at *path*.

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
        """Send *requests* together. Raises NetlinkError for the first that failed; the kernel tries the others too."""
        for outcome in self.attempt(*requests):
            if outcome is not None:
                raise outcome

    def attempt(self, *requests: Request) -> list[NetlinkError | None]:
        """Send *requests* together and return the outcome of each: None, or its error."""
        return [outcome for _, outcome in self._exchange(requests)]

    def ask(self, request: Request) -> Answer:
        """Return the answer to *request*. Raises NetlinkError."""
        return self.ask_all(request)[0]

    def ask_all(self, *requests: Request) -> list[Answer]:
        """Send *requests* together and return the answer to each. Raises NetlinkError for the first that failed."""
        answers: list[Answer] = []
        for answer, outcome in self._exchange(requests):
            if outcome is not None:
                raise outcome
            if answer is None:
                raise NetlinkError(errno.ENODATA, "the kernel gave no answer")
            answers.append(answer)
        return answers

    def ask_each(self, *requests: Request) -> list[Answer | None]:
        """Send *requests* together and return the answer to each; None where the interface does not exist (ENODEV).

        Raises NetlinkError for the first that failed otherwise.
        """
        answers: list[Answer | None] = []
        for answer, outcome in self._exchange(requests):
            if outcome is not None and outcome.errno != errno.ENODEV:
                raise outcome
            answers.append(answer)
        return answers

    def do_and_ask(self, do: Request, ask: Request) -> tuple[NetlinkError | None, Answer | None]:
        """Send *do* and *ask* together; return the error of *do* and the answer to *ask*, or None for each."""
        (_, refused), (answer, _) = self._exchange((do, ask))
        return refused, answer

    def dump(self, request: Request) -> list[Answer]:
        """Return all objects that *request* asks for, as of one moment. Raises NetlinkError."""
        request = replace(request, flags=request.flags | nl.NLM_F_DUMP)
        for _ in range(_DUMP_ATTEMPTS):
            answers = self._dump(request)
            if answers is not None:
                return answers
        raise NetlinkError(errno.EBUSY, "the listed objects changed all the time")

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
                position = sequence - first
                if position not in pending:
                    continue
                if kind == nl.NLMSG_ERROR:
                    pending.discard(position)
                    refused = error_in_ack(kind, body, flags)
                    if refused is not None and refused.errno not in requests[position].ignored:
                        errors[position] = refused
                else:
                    answers[position] = Answer(kind, body)
        return list(zip(answers, errors, strict=True))

    def _dump(self, request: Request) -> list[Answer] | None:
        """Return the objects, None if they changed during the dump."""
        first = self._send((request,))
        answers: list[Answer] = []
        is_consistent = True
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence != first:
                    continue
                is_consistent = is_consistent and not flags & nl.NLM_F_DUMP_INTR
                if kind in {nl.NLMSG_ERROR, nl.NLMSG_DONE}:
                    refused = error_in_ack(kind, body, flags)
                    if refused is not None:
                        raise refused
                    return answers if is_consistent else None
                answers.append(Answer(kind, body))

    def _send(self, requests: tuple[Request, ...]) -> int:
        """Send *requests* together and return the sequence number of the first."""
        first = self._sequence + 1
        self._sequence += len(requests)
        self._socket.send(b"".join(message.packed(each, first + position) for position, each in enumerate(requests)))
        return first

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield type, flags, sequence number and body of the messages that one system call returns."""
        try:
            size, (sender, _) = self._socket.recvfrom_into(self._buffer)
        except BlockingIOError:
            raise NetlinkError(errno.ETIMEDOUT, "the kernel did not answer") from None
        if sender != 0:
            return  # a process of the container may send to a socket in its namespace
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
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
        for option in (_NETLINK_CAP_ACK, nl.NETLINK_EXT_ACK, nl.NETLINK_GET_STRICT_CHK):
            with contextlib.suppress(OSError):  # an older kernel answers the same, with fewer words
                connection.setsockopt(nl.SOL_NETLINK, option, 1)
        connection.bind((0, 0))
    except BaseException:
        connection.close()
        raise
    return connection


def error_in_ack(kind: int, body: bytes, flags: int) -> NetlinkError | None:
    """Return the error in an acknowledgement or at the end of a dump, None if there is none."""
    size = _ERROR.fields.size
    code = -_ERROR.decode(body)["error"] if len(body) >= size else 0
    if not code:
        return None
    sentence = ""
    if flags & nl.NLM_F_ACK_TLVS:
        start = size
        if kind == nl.NLMSG_ERROR:  # the request comes first: its header, or all of it
            start += HEADER.size if flags & nl.NLM_F_CAPPED else HEADER.unpack_from(body, start)[0]
        sentence = _ERROR.decode(body, start + -start % 4).get("NLMSGERR_ATTR_MSG", "")
    return NetlinkError(code, sentence or os.strerror(code))
