"""Several threads that use a type for the first time at the same moment."""

from __future__ import annotations

import subprocess
import sys

import pytest

FIRST_USES = """
import sys, threading
import msgspec
from events.process import decoding

sys.setswitchinterval(1e-6)
convert = eval(sys.argv[1])
kinds = []
for number in range(300):
    space = {"__name__": f"kinds{number}"}
    module = type(sys)(space["__name__"])
    sys.modules[module.__name__] = module
    exec(
        "from __future__ import annotations\\nimport msgspec\\n"
        "class Inner(msgspec.Struct):\\n    a: int = 0\\n    b: str = ''\\n"
        "class Outer(msgspec.Struct):\\n" + "".join(f"    x{n}: Inner | None = None\\n" for n in range(12)),
        module.__dict__,
    )
    kinds.append(module.Outer)
start = threading.Barrier(4)
problems = []

def use():
    for kind in kinds:
        start.wait()
        try:
            assert convert({"x3": {"a": 7}}, kind).x3.a == 7
        except Exception as error:
            problems.append(error)

threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(repr(problems[0]) if problems else 0)
"""


def outcome(convert: str) -> int:
    return subprocess.run([sys.executable, "-c", FIRST_USES, convert], check=False, capture_output=True).returncode


def test_many_threads_may_use_a_type_first() -> None:
    assert outcome("decoding.convert") == 0


def test_msgspec_alone_crashes_on_concurrent_first_use() -> None:
    """Fails once ``decoding`` is not needed any more. The crash needs two threads at once, which most attempts have."""
    if all(outcome("msgspec.convert") == 0 for _ in range(20)):
        pytest.fail("msgspec's own convert survived: events.process.decoding can go")
