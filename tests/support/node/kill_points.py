"""Kill a worker at any point of an ADD, a DEL, a rollback or a GC.

The boundaries are the appends to the ledger: a successor does not know what its predecessor did after the last of them.
The tests try each boundary twice: right before the ledger has the event and right after.
"""

from __future__ import annotations

import signal

import pytest

from tests.support.node.node import DEL_EVENTS, Node
from tests.support.node.runtime import Answer, Call, PodSandbox

GC_EVENTS = ("GcRequested", *DEL_EVENTS, "GcCompleted")
NATIVE, EXECUTED = "auto", "never"
"""Values of the setting ``native``: the worker runs plugins natively, or executes them."""


def boundaries(executed: tuple[str, ...], native: tuple[str, ...]) -> pytest.MarkDecorator:
    """Kill the worker around each event of *executed* plugins, or of *native* ones."""
    return pytest.mark.parametrize(
        ("node", "fault"),
        [
            pytest.param(
                setting, f"{moment}:{name}:{events[: index + 1].count(name)}", id=f"{setting}-{moment}-{name}-{index}"
            )
            for setting, events in ((NATIVE, native), (EXECUTED, executed))
            for index, name in enumerate(events)
            for moment in ("before", "after")
        ],
        indirect=["node"],
    )


def succeed(node: Node, call: Call) -> Answer:
    """Return the answer to *call* by the successor of the worker, which dies of a fault."""
    assert node.ended() == -signal.SIGKILL
    node.start()
    return call.answer()


def broken_pod(node: Node) -> PodSandbox:
    """Return a pod whose second network's plugin fails every ADD."""
    node.plugin(
        "broken",
        'cat > /dev/null; [ $CNI_COMMAND = DEL ] || { echo \'{"code":42,"msg":"no more uplinks"}\'; exit 1; }',
    )
    node.nad("broken", {"cniVersion": "1.0.0", "type": "broken"})
    return node.pod("broken", "broken")


def collect(node: Node) -> Call:
    """Start a GC with an empty list of valid attachments."""
    request = {**node.conf(version="1.1.0"), "cni.dev/valid-attachments": []}
    return node.runtime.call("GC", {"CNI_PATH": "/usr/lib/cni"}, request)
