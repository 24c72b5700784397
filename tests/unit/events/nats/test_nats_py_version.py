"""nats-py's private members that ``events.nats.client.client`` overrides or uses are those that were measured."""

from __future__ import annotations

import hashlib
import inspect
from importlib.metadata import version
from typing import Any

import pytest
from nats.aio.transport import TcpTransport

from events.nats.client import nats_py

VERSION = "2.16"
"""The digests below are of this minor version."""

_init = nats_py.Client._process_connect_init

MEMBERS: dict[str, tuple[Any, str, str]] = {
    "Client.close": (nats_py.Client.close, "Client.close", "e3c4d17ec4cc"),
    "Client._close": (nats_py.Client._close, "Client.close", "9a92d3aca1b2"),
    "Client._connect_to_server": (nats_py.Client._connect_to_server, "Client._connect_to_server", "1356d992325f"),
    "Client._select_next_server": (nats_py.Client._select_next_server, "Client._connect_to_server", "c278559f8a14"),
    "Client.ssl_context": (nats_py.Client.ssl_context.fget, "Client.ssl_context", "9596cfe2fcec"),
    "Client._process_info": (nats_py.Client._process_info, "Client._process_info", "ecca7bb93130"),
    "Client._process_connect_init": (
        nats_py.Client._process_connect_init,
        "Client._process_connect_init",
        "e1ed2da075c8",
    ),
    "Client._attempt_reconnect": (nats_py.Client._attempt_reconnect, "Client._process_connect_init", "2bbc96e0f2f7"),
    "Client._connect_command": (nats_py.Client._connect_command, "Client._connect_command", "1999c01f55c9"),
    "TcpTransport.connect_tls": (TcpTransport.connect_tls, "Client._connect_command", "6688ffffefa2"),
    "Client.publish": (nats_py.Client.publish, "Client._send_publish", "97d776c391ad"),
    "Client._send_publish": (nats_py.Client._send_publish, "Client._send_publish", "300b534f8eab"),
    "Client._read_loop": (nats_py.Client._read_loop, "_Parser.parse", "b44b9401f436"),
    "Client._process_msg": (nats_py.Client._process_msg, "_Parser._hand_over and Client.listen", "6cff75947e97"),
    "Parser.parse": (nats_py.Parser.parse, "_Parser.parse", "7d6165f1766c"),
    "Parser.reset": (nats_py.Parser.reset, "_Parser.reset", "0f304f3f8691"),
    "Subscription.__init__": (nats_py.Subscription.__init__, "Client.listen", "2802b4167b60"),
}
"""Each upstream member with the override that depends on it, and the first digits of its source's SHA-256."""

ATTRIBUTES = {
    "_ps",
    "_pending",
    "_pending_data_size",
    "_server_pool",
    "_current_server",
    "_transport",
    "_reading_task",
    "_ping_interval_task",
    "_flusher_task",
    "_subs",
}


def digest_of(member: Any) -> str:
    return hashlib.sha256(inspect.getsource(member).encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", MEMBERS)
def test_upstream_member_is_the_one_that_was_overridden(name: str) -> None:
    member, override, digest = MEMBERS[name]
    assert digest_of(member) == digest, (
        f"nats-py {version('nats-py')} has another {name} than {VERSION}: read it, check {override} in "
        f"events/nats/client/client.py, measure with `python -m bench.ledger_client`, then set its digest here"
    )


def test_client_has_the_private_attributes_that_the_overrides_use() -> None:
    missing = ATTRIBUTES - vars(nats_py.Client()).keys()
    assert not missing, f"nats-py {version('nats-py')} has no {', '.join(sorted(missing))} any more"


def test_transport_has_the_private_attributes_that_the_overrides_use() -> None:
    assert {"_io_writer", "_bare_io_writer"} <= vars(TcpTransport()).keys()


def test_installed_version_is_the_one_of_the_digests() -> None:
    assert version("nats-py").rpartition(".")[0] == VERSION
