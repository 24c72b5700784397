"""A native process of the pool, on its own pipes."""

from __future__ import annotations

import subprocess
import sys

WORKER_THAT_ENDED = """
import os, struct
import msgspec
from nodeworker.plugins.native.jobs import LinkRemoval
from nodeworker.plugins.native import process

requests, to_child = os.pipe()
from_child, replies = os.pipe()
child = os.fork()
if child == 0:
    os.close(to_child)
    os.close(from_child)
    process.run(lambda: None, {requests, replies}, requests, replies)
os.close(from_child)
job = LinkRemoval(netns="/run/netns/gone", ifnames=("net1",))
batch = msgspec.msgpack.encode([job])
os.write(to_child, struct.pack("=I", len(batch)) + batch)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_native_process_ends_quietly_when_its_worker_is_gone() -> None:
    done = subprocess.run([sys.executable, "-c", WORKER_THAT_ENDED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
