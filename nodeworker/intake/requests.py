"""Take requests from entry points, make them intents, and bring back the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import structlog

from events.ledger.ledger import LedgerError
from events.schema import (
    NO_SANDBOX,
    AttachRequested,
    ContainerId,
    Data,
    DetachRequested,
    ErrorClass,
    GcRequested,
    IfName,
    Phase,
    RequestId,
)
from nodeworker.deadline import deadline_in
from nodeworker.errors import RequestFailedError, class_of, failed, internal, naming, usable_container_id
from nodeworker.intake.check import Checker
from nodeworker.intake.request_log import RequestLog
from nodeworker.intake.spool import Spool
from nodeworker.journal.journal import Journal
from nodeworker.metrics import WorkerMetrics
from nodeworker.planning.planner import Planner
from nodeworker.plugins.spec.cni_args import pod_of
from nodeworker.sandboxes.answers import OK, Answers, Reply, refusal
from nodeworker.sandboxes.dispatcher import Dispatcher
from nodeworker.shim.frame import Frame

log = structlog.get_logger(__name__)


class Requests:
    """The worker's side of the unix socket."""

    def __init__(
        self,
        journal: Journal,
        planner: Planner,
        dispatcher: Dispatcher,
        checker: Checker,
        answers: Answers,
        spool: Spool,
        drain_spool: Callable[[], Awaitable[object]],
        metrics: WorkerMetrics,
        request_log: RequestLog,
    ) -> None:
        self._journal = journal
        self._planner = planner
        self._dispatcher = dispatcher
        self._checker = checker
        self._answers = answers
        self._spool = spool
        self._drain_spool = drain_spool
        self._metrics = metrics
        self._request_log = request_log

    async def answer(self, frame: Frame) -> Reply:
        """Return the answer to one request, however long it takes; count it, and tell of it in the log."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        command = frame.env.get("CNI_COMMAND", "")
        try:
            reply = await self._fulfil(command, frame)
        except Exception as error:  # one bad request never stops the others
            log.exception("intake_broke", command=command, request=frame.request)
            reply = refusal(internal(Phase.INTAKE, error), frame.config)
        seconds = loop.time() - started
        known = command if command in ("ADD", "DEL", "CHECK", "GC", "STATUS") else "other"
        self._metrics.request_done(known, seconds, reply.failure)
        self._request_log.done(frame, reply, seconds)
        return reply

    def abandon(self, frame: Frame) -> None:
        """Nobody waits for the answer to *frame* any more."""
        self._dispatcher.abandon(frame.request)

    def taken(self, frame: Frame) -> None:
        """The answer to *frame* is on its way."""
        self._answers.taken(frame.request)

    async def _fulfil(self, command: str, frame: Frame) -> Reply:
        config = frame.config
        if command == "STATUS":
            return await self._checker.status(config, frame.env.get("CNI_PATH", ""))
        if command == "CHECK":
            return await self._check(frame, config)
        try:
            intent, sandbox = intent_of(command, frame)
        except RequestFailedError as error:
            return refusal(error.failure, config)
        if isinstance(intent, AttachRequested) and self._spool.has_one_of(sandbox):
            try:  # or the DEL, which the runtime takes for done, would undo the ADD that it asks for since
                await self._drain_spool()
            except LedgerError as error:
                return self._without_ledger(frame, intent, error)
        if self._answers.open(frame.request):
            event = self._journal.event(intent, sandbox)
            if isinstance(intent, AttachRequested) and self._dispatcher.would_begin(sandbox):
                self._planner.begin(event, intent, frame.remaining)
            try:
                await self._journal.request(event)
            except LedgerError as error:
                self._planner.forget(event)
                self._answers.give(frame.request, self._without_ledger(frame, intent, error))
        return await self._answers.wait(frame.request)

    async def _check(self, frame: Frame, config: str) -> Reply:
        env = _environment(frame)
        container_id = ContainerId(env.get("CNI_CONTAINERID", ""))
        ifname = IfName(env.get("CNI_IFNAME", ""))
        pod = pod_of(env.get("CNI_ARGS", ""))
        return await self._dispatcher.take_turn(
            container_id, lambda: self._checker.check(container_id, ifname, pod, config)
        )

    def _without_ledger(self, frame: Frame, intent: Data, error: LedgerError) -> Reply:
        """Return the answer while the ledger takes no intent: DEL waits on disk, the runtime repeats the rest."""
        config = frame.config
        pod = pod_of(_environment(frame).get("CNI_ARGS", ""))
        error_class = class_of(error)
        if not isinstance(intent, DetachRequested):
            return refusal(naming(pod, failed(error_class, Phase.INTAKE, str(error)).failure), config)
        try:
            self._spool.put(frame)
        except OSError as problem:
            message = f"{error}; and DEL can't be kept on disk either: {problem.strerror}"
            return refusal(naming(pod, failed(error_class, Phase.INTAKE, message).failure), config)
        log.warning("detach_spooled", request=frame.request, error=str(error))
        return OK


def intent_of(command: str, frame: Frame, *, spooled: bool = False) -> tuple[Data, ContainerId]:
    """Return the intent in *frame*, and the sandbox it is for. Raises RequestFailedError for no known command."""
    env = _environment(frame)
    container_id = env.get("CNI_CONTAINERID", "")
    sandbox = ContainerId(container_id) if usable_container_id(container_id) else NO_SANDBOX
    common: dict[str, Any] = {
        "request": RequestId(frame.request),
        "config": frame.config,
        "path": env.get("CNI_PATH", ""),
        "deadline": "" if spooled else deadline_in(frame.remaining),
    }
    match command:
        case "ADD":
            return AttachRequested(**common, **_attachment(env)), sandbox
        case "DEL":
            return DetachRequested(**common, **_attachment(env), spooled=spooled), sandbox
        case "GC":
            return GcRequested(**common, valid=_valid_attachments(frame.stdin)), NO_SANDBOX
        case _:
            raise failed(
                ErrorClass.INVALID_REQUEST,
                Phase.INTAKE,
                f"CNI_COMMAND is {command!r}, not one of ADD, DEL, CHECK, GC, STATUS, VERSION",
            )


def _environment(frame: Frame) -> dict[str, str]:
    """Return the variables as text that can be written anywhere."""
    return {key: value.encode(errors="surrogateescape").decode(errors="replace") for key, value in frame.env.items()}


def _attachment(env: Mapping[str, str]) -> dict[str, Any]:
    args = env.get("CNI_ARGS", "")
    return {
        "ifname": IfName(env.get("CNI_IFNAME", "")),
        "netns": env.get("CNI_NETNS", ""),
        "args": args,
        "pod": pod_of(args),
    }


class _GcEntry(msgspec.Struct):
    container_id: str = msgspec.field(name="containerID")
    ifname: str


class _GcKeys(msgspec.Struct):
    valid: list[_GcEntry] | None = msgspec.field(name="cni.dev/valid-attachments", default=None)
    attachments: list[_GcEntry] | None = msgspec.field(name="cni.dev/attachments", default=None)


def _valid_attachments(stdin: bytes) -> tuple[tuple[str, str], ...] | None:
    """Return the runtime's list, None if it gave none. The second key is what drafts of the specification called it."""
    try:
        keys = msgspec.json.decode(stdin, type=_GcKeys)
    except msgspec.MsgspecError:
        return None  # the configuration is refused where it is read as one
    entries = keys.valid if keys.valid is not None else keys.attachments
    return None if entries is None else tuple((entry.container_id, entry.ifname) for entry in entries)
