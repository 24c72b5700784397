"""CONTRIBUTING's ways of an ADD and a DEL, compared with what a worker does."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.node import node as node_module
from tests.support.node import traced_worker
from tests.support.node.reconciler_process import reconciler
from tests.support.node.traced_worker import FOLDER, NETLINK, Call
from tests.support.repository import REPOSITORY
from tests.support.waiting import eventually

_LINE = re.compile(r"^\d+\. (.+?): ", re.MULTILINE)
_FUNCTION = re.compile(r"`(\S+\.py)` `(\S+)`")
_FRAMES = 10
"""Frames of ours from the scheduler to the first netlink message, those of the netlink library in ``kernel`` apart."""
_QUIET = 1.0
"""Seconds after which the worker does nothing more for a request."""


class Trace(NamedTuple):
    """The calls of one ADD and one DEL of a pod with an interface of bridge and one of macvlan."""

    add: list[Call]
    delete: list[Call]


@pytest.fixture(scope="module")
def trace(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    folder = tmp_path_factory.mktemp("trace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node_module, "_FAULTY_WORKER", Path(traced_worker.__file__))
        patch.setenv(FOLDER, str(folder))
        with node_module.Node(tmp_path_factory.mktemp("n"), shim).entered() as node:
            node.start("traced", executed=True)
            node.nad("macvlan-conf", node.macvlan())
            first, pod = node.pod("first", "macvlan-conf"), node.pod("second", "macvlan-conf")

            def waits_for_status() -> bool:
                """The worker has imported the plugins then, too."""
                assert first.add().exit_code == first.delete().exit_code == 0
                return any(call.function.endswith(" StatusWait.wait") for call in traced_worker.calls(folder))

            with reconciler(node):
                eventually(waits_for_status, "an answer waits for the network-status")
                time.sleep(_QUIET)
                times = [time.monotonic()]
                assert pod.add().exit_code == 0
                times.append(time.monotonic())
                time.sleep(_QUIET)
                times.append(time.monotonic())
                assert pod.delete().exit_code == 0
                times.append(time.monotonic())
    calls = traced_worker.calls(folder)
    add, delete = ([call for call in calls if times[i] <= call.at <= times[i + 1]] for i in (0, 2))
    return Trace(add, delete)


def listed(heading: str) -> list[str]:
    """Return the functions of the section *heading* of CONTRIBUTING.md, as a trace names them. It sees no C."""
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()
    section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = _LINE.findall(section)
    functions = [f"{file} {function}" for line in lines for file, function in _FUNCTION.findall(line)]
    assert len(functions) >= len(lines) - 1 >= 10, section
    return functions


def assert_met_in_order(functions: Sequence[str], calls: Sequence[Call]) -> None:
    rest = iter(calls)
    for function in functions:
        assert any(call.function == function for call in rest), f"{function} is not met where CONTRIBUTING lists it"


def test_an_add_meets_the_listed_functions_in_order(trace: Trace) -> None:
    assert_met_in_order(listed("The way of an ADD"), trace.add)


def test_a_del_meets_the_listed_functions_in_order(trace: Trace) -> None:
    assert_met_in_order(listed("The way of a DEL"), trace.delete)


def test_few_frames_lie_between_scheduler_and_kernel(trace: Trace) -> None:
    """Both stacks at the first netlink message: the worker's, whose task waits, and the native process'."""
    waiting = next(call.stack[:-1] for call in trace.add if call.function.endswith(" NativePool.submit"))
    sending = next(call.stack for call in trace.add if call.function == NETLINK and _is_bridge(call.stack))
    worker = waiting[_index(waiting, " Scheduler._run_queue") :]
    native = sending[_index(sending, " _serve") : -1]
    frames = [each for each in (*worker, *native) if not each.startswith("nodeworker/kernel/")]
    print(f"{len(frames)} frames, {len(worker) + len(native)} with the kernel library:", *worker, *native, sep="\n  ")
    assert len(frames) <= _FRAMES, frames


@pytest.mark.parametrize("verb", ["add", "delete"])
def test_files_and_functions_of_a_request_are_reported(
    trace: Trace, verb: str, record_property: Callable[[str, object], None]
) -> None:
    functions = {call.function for call in getattr(trace, verb)} - {NETLINK}
    files = {function.split()[0] for function in functions}
    print(f"{verb}: {len(files)} files and {len(functions)} functions")
    record_property("files", len(files))
    record_property("functions", len(functions))
    assert files


def _is_bridge(stack: Sequence[str]) -> bool:
    return any("/kinds/bridge/" in each for each in stack)


def _index(stack: Sequence[str], end: str) -> int:
    return next(index for index, each in enumerate(stack) if each.endswith(end))
