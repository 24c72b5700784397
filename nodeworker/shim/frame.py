"""The wire format between the CNI entry point (``plumbline.c``) and the worker, as pure functions.

A request is a header of ``HEADER`` bytes (``MAGIC``, then u32 length of the body) and the body: 16 bytes request id,
u64 milliseconds left, u32 number of environment entries, each u32 length and ``KEY=VALUE``, u32 length and standard
input. A reply is ``MAGIC``, u32 exit code, u32 length and standard output. Integers are little-endian. A spooled
request is a file with the same bytes.
"""

from __future__ import annotations

import struct

import msgspec

from events.schema import RequestId

MAGIC = b"PLB1"
HEADER = 8
STDIN_MAX = 1 << 20
REST_MAX = 256 << 10
"""Maximum bytes of a body without standard input."""
BODY_MAX = STDIN_MAX + REST_MAX
ENTRIES_MAX = 64
REPLY_MAX = 8 << 20
"""Maximum bytes of standard output."""

_U32 = struct.Struct("<I")
_HEAD = struct.Struct("<16sQI")
_REPLY = struct.Struct("<4sII")


class FrameError(ValueError):
    """Bytes that are not a request of the entry point, or values that a frame can't carry."""


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One CNI request, as the entry point received it."""

    request: RequestId
    """32 hexadecimal digits. A request that is sent again, after a reconnect or from the spool, keeps its id."""
    seconds_left: float
    """Seconds until the entry point's deadline when it sent the request; meaningless in the spool."""
    env: dict[str, str]
    """The variables that begin with ``CNI_``. Bytes that are not UTF-8 are surrogate escapes, as in ``os.environ``."""
    stdin: bytes

    @property
    def config(self) -> str:
        """``stdin`` as text. Bytes that are not UTF-8 become backslash escapes, so the text is still invalid JSON."""
        return self.stdin.decode(errors="backslashreplace")


def body_length(header: bytes) -> int:
    """Return the length of the body after *header*, the first ``HEADER`` bytes of a request. Raises FrameError."""
    if len(header) != HEADER or not header.startswith(MAGIC):
        raise FrameError(
            f"the request does not start with {MAGIC.decode()}: entry point and worker are of different releases"
        )
    (length,) = _U32.unpack_from(header, len(MAGIC))
    if length > BODY_MAX:
        raise FrameError(f"the request's body is {length} bytes long, more than {BODY_MAX}")
    return length


def decode_frame(frame: bytes) -> Frame:
    """Return the request in *frame*, header and body, which is the content of a spooled file. Raises FrameError."""
    length = body_length(frame[:HEADER])
    if len(frame) != HEADER + length:
        raise FrameError(f"the request is {len(frame)} bytes long, but its header says {HEADER + length}")
    return decode_request(frame[HEADER:])


def decode_request(body: bytes) -> Frame:
    """Return the request in *body*, without the header. Raises FrameError.

    If a variable occurs twice, the first one counts, as in ``getenv``.
    """
    if len(body) < _HEAD.size:
        raise FrameError(f"the request's body ends after {len(body)} bytes")
    request, milliseconds, entries = _HEAD.unpack_from(body)
    if entries > ENTRIES_MAX:
        raise FrameError(f"the request has {entries} environment entries, more than {ENTRIES_MAX}")
    env: dict[str, str] = {}
    at = _HEAD.size
    for _ in range(entries):
        entry, at = _chunk(body, at)
        key, equals, value = entry.partition(b"=")
        if not key or not equals or b"\0" in entry:
            raise FrameError("the request has an environment entry that is not KEY=VALUE")
        env.setdefault(_text(key), _text(value))
    stdin, end = _chunk(body, at)
    if end != len(body):
        raise FrameError(f"the request's body has {len(body) - end} bytes too many")
    if len(stdin) > STDIN_MAX or len(body) - len(stdin) > REST_MAX:
        raise FrameError("the request's standard input or environment is larger than the entry point accepts")
    return Frame(request=RequestId(request.hex()), seconds_left=milliseconds / 1000, env=env, stdin=stdin)


def encode_request(frame: Frame) -> bytes:
    """Return the bytes of *frame* with header, as the entry point sends and spools them.

    Raises FrameError for values that the entry point never sends.
    """
    try:
        head = _HEAD.pack(bytes.fromhex(frame.request), round(frame.seconds_left * 1000), len(frame.env))
        entries = [f"{key}={value}".encode(errors="surrogateescape") for key, value in frame.env.items()]
    except (ValueError, OverflowError, struct.error) as error:
        raise FrameError(f"a frame can't carry this request: {error}") from error
    body = b"".join(
        [head, *(_U32.pack(len(entry)) + entry for entry in entries), _U32.pack(len(frame.stdin)), frame.stdin]
    )
    read = decode_request(body)
    if (read.request, read.env) != (frame.request, frame.env):
        raise FrameError(f"a frame can't carry request id {frame.request!r} with the variables {sorted(frame.env)}")
    return MAGIC + _U32.pack(len(body)) + body


def encode_reply(exit_code: int, stdout: bytes) -> bytes:
    """Return the reply that makes the entry point print *stdout* and exit with *exit_code*. Raises FrameError.

    A failure must have a text, the CNI error object. At most ``REPLY_MAX`` bytes.
    """
    if not 0 <= exit_code <= 255 or len(stdout) > REPLY_MAX or (exit_code and not stdout):
        raise FrameError(f"a reply can't have exit code {exit_code} with {len(stdout)} bytes")
    return _REPLY.pack(MAGIC, exit_code, len(stdout)) + stdout


def _chunk(body: bytes, at: int) -> tuple[bytes, int]:
    start = at + _U32.size
    if start > len(body):
        raise FrameError(f"the request's body ends at {len(body)}, inside a length")
    (length,) = _U32.unpack_from(body, at)
    end = start + length
    if end > len(body):
        raise FrameError(f"the request's body ends at {len(body)}, inside a part that ends at {end}")
    return body[start:end], end


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")
