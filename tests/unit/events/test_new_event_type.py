"""An event type that is declared in one place works everywhere: this declares some in a copy of the source."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.repository import REPOSITORY

DECLARATION = '''

class ProbeRequested(Command, frozen=True, kw_only=True):
    """Asks a node to probe a network."""

    topic: ClassVar[str] = "probe"

    target: str


class ProbeFailed(Outcome, frozen=True, kw_only=True):
    """The probe found nothing."""

    topic: ClassVar[str] = "probe"

    failure: Failure


class NetworkNoted(Observation, frozen=True, kw_only=True):
    """An operator noted something about a network."""

    network: str
'''

USE = """
import json
from events.fold import State, request_of
from events.forgetting import Forgetting
from events.schema import *
from reconciler.history.timeline import Timeline

node, box = NodeName("n1"), ContainerId("c1")
failure = Failure(error_class=ErrorClass.INTERNAL, phase=Phase.CHECK, message="no answer", code=100)

def event(id, data, sandbox=NO_SANDBOX, cause=""):
    envelope = {"at": "2026-01-01T00:00:00.000000000Z", "node": node, "boot_id": "b", "epoch": 1, "trace": ""}
    return Event(id=EventId(id), sandbox=sandbox, cause=EventId(cause), data=data, **envelope)

events = [
    event("1", ProbeRequested(request=RequestId("r"), target="10.0.0.1", command=7)),
    event("2", ProbeFailed(request=RequestId("r"), failure=failure), cause="1"),
    event("3", NetworkNoted(network="default/net"), sandbox=box),
    event("4", NetworkNoted(network="default/net")),
]
state, forgetting, timeline, pending, lines = State(), Forgetting(node), Timeline(), [], []
for stored in (Stored(sequence, decode(encode(each))) for sequence, each in enumerate(events, 1)):
    assert stored.event == events[stored.sequence - 1]
    state.apply(stored)
    pending.append(len(state.pending))
    forgetting.add(stored)
    lines += [(line.words, line.failed) for line in timeline.lines(stored)]
print(json.dumps({
    "types": [name in TYPES for name in ("ProbeRequested", "ProbeFailed", "NetworkNoted")],
    "intents": sorted(INTENTS & {"ProbeRequested", "ProbeFailed", "NetworkNoted"}),
    "commands": sorted(COMMANDS & {"ProbeRequested", "ProbeFailed", "NetworkNoted"}),
    "requests": [request_of(each) for each in events],
    "pending": pending,
    "taken": state.commands[node],
    "sandboxes": len(state.sandboxes),
    "anomalies": [anomaly.reason for anomaly in state.anomalies],
    "purges": list(forgetting.purges()),
    "lines": lines,
}))
"""


def test_new_type_declared_in_one_place_works_everywhere(tmp_path: Path) -> None:
    for room in ("events", "reconciler/history"):
        shutil.copytree(REPOSITORY / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "reconciler/__init__.py").touch()
    observations = tmp_path / "events/schema/observations.py"
    imports = "from events.schema.kinds import Fence, Observation, Outcome"
    text = observations.read_text()
    assert imports in text
    observations.write_text(text.replace(imports, f"{imports}, Command") + DECLARATION)
    used = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert used.returncode == 0, used.stderr
    assert json.loads(used.stdout) == {
        "types": [True, True, True],
        "intents": ["ProbeRequested"],
        "commands": ["ProbeRequested"],
        "requests": ["r", "r", None, None],
        "pending": [1, 0, 0, 0],
        "taken": 7,
        "sandboxes": 0,
        "anomalies": [],
        # The newest command stays: by it a node knows where to resume.
        "purges": [
            ["plumbline.ev.n1.c1.*", 3],
            ["plumbline.ev.n1.-.NetworkNoted", 4],
        ],
        "lines": [
            ["ProbeRequested", False],
            ["ProbeFailed: no answer [internal]", True],
            ["NetworkNoted", False],
            ["NetworkNoted", False],
        ],
    }
