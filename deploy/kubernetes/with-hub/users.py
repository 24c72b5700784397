"""Make the hub's users: one for the reconcilers, and one per node that may write the events of that node only.

    python deploy/kubernetes/with-hub/users.py FOLDER NODE...

writes FOLDER/users.conf for the servers, and FOLDER/passwords/<user> for the processes. Existing users keep their
passwords. ``events.subjects`` encodes a node's name for its subjects.
"""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import Any

from events import subjects
from events.subjects import COMMAND_ROOT, DOWN_ROOT, ROOT

RECONCILER = "reconciler"
PRESENCE = "plumbline.presence.>"
API = "$JS.API"


def worker(node: str, password: str) -> dict[str, Any]:
    """Return the user of *node*'s worker.

    The worker can read every event of both streams: the server checks only the stream of a request, not its subject.
    Without a consumer it would have to read them one by one.
    """
    name = subjects.token(node)
    read = [f"{API}.STREAM.MSG.GET.LEDGER", f"{API}.STREAM.MSG.GET.COMMANDS", f"{API}.STREAM.INFO.COMMANDS"]
    return {
        "user": node,
        "password": password,
        "permissions": {
            "publish": {"allow": [f"{ROOT}.{name}.>", *read]},
            "subscribe": {"allow": [f"_INBOX.{name}.>", f"{DOWN_ROOT}.{name}.>", PRESENCE]},
        },
    }


def reconciler(password: str) -> dict[str, Any]:
    """Return the user of the reconcilers: it creates the streams, reads every event, and writes as no node."""
    calls = [f"STREAM.{call}.{stream}" for call in ("INFO", "CREATE", "UPDATE", "MSG.GET") for stream in _STREAMS]
    calls += [f"CONSUMER.{call}.LEDGER.>" for call in ("CREATE", "MSG.NEXT", "DELETE")]
    written = [f"{ROOT}.-.>", f"{COMMAND_ROOT}.>", f"{DOWN_ROOT}.>", PRESENCE]
    return {
        "user": RECONCILER,
        "password": password,
        "permissions": {
            "publish": {"allow": [*written, *(f"{API}.{call}" for call in calls)]},
            "subscribe": {"allow": [f"_INBOX.{RECONCILER}.>", f"{ROOT}.-.>", PRESENCE]},
        },
    }


_STREAMS = ("LEDGER", "COMMANDS")


def main(folder: Path, nodes: list[str]) -> None:
    """Write the files for *nodes* to *folder*."""
    passwords = folder / "passwords"
    passwords.mkdir(mode=0o700, parents=True, exist_ok=True)
    users = [reconciler(_password(passwords / RECONCILER))]
    users += [worker(node, _password(passwords / node)) for node in sorted(set(nodes))]
    path = folder / "users.conf"
    path.touch(mode=0o600)
    path.write_text(f"users: {json.dumps(users, indent=2)}\n")  # the server's format is a superset of JSON


def _password(path: Path) -> str:
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(32))
    return path.read_text().strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
