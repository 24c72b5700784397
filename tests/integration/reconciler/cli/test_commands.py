"""The commands as users run them: real processes, real ledger."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from events.ledger.new_event import new_event
from events.nats.commands import JetStreamCommands
from events.nats.ledger import JetStreamLedger
from events.nats.server import EmbeddedServer
from events.nats.streams import command_stream
from events.schema import NO_NODE, Pod, ReconcilerElected
from reconciler.history.timeline import HEADER
from reconciler.projection.store import Store
from tests.support.run.fork_server import plumbline
from tests.support.stories.events import container
from tests.support.stories.node import Node, busy_day
from tests.support.stories.values import SECRET

MAIN = [sys.executable, "-c", "from reconciler.cli.main import main; main()"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "plumbline.json"
    path.write_text(
        json.dumps({"stateDir": str(tmp_path), "runDir": str(tmp_path / "run"), "manifests": str(tmp_path)})
    )
    return path


@pytest.fixture
def ledger(server: EmbeddedServer, jetstream: JetStreamLedger) -> JetStreamLedger:
    """The ledger on the test's own server, whose address the commands read."""
    return jetstream


@pytest.fixture
async def busy_ledger(ledger: JetStreamLedger) -> JetStreamLedger:
    node = Node()
    for event in busy_day(6, node):
        await ledger.append(event)
    return ledger


async def test_timeline_shows_the_events_of_a_pod(busy_ledger: JetStreamLedger, config: Path) -> None:
    done = await asyncio.to_thread(plumbline, config, "timeline", "shop/web-3")
    assert (done.returncode, done.stderr) == (0, "")
    header, *lines = done.stdout.splitlines()
    assert re.split(r"  +", header) == list(HEADER)
    ends = {header.index(title) for title in HEADER}
    assert all(line[end - 2 : end] == "  " for line in lines for end in ends - {0})
    assert "attach of shop/web-3 requested" in lines[0]
    assert "attach FAILED" in lines[-1]
    assert len(lines) == 9
    assert "\x1b" not in done.stdout


async def test_a_pod_is_found_by_bare_name_and_by_container_id(busy_ledger: JetStreamLedger, config: Path) -> None:
    by_name = await asyncio.to_thread(plumbline, config, "timeline", "web-2")
    assert by_name.stdout
    by_id = await asyncio.to_thread(plumbline, config, "timeline", container(2)[:7])
    assert by_id.stdout == by_name.stdout


async def test_without_pod_all_events_are_shown_in_ledger_order(busy_ledger: JetStreamLedger, config: Path) -> None:
    done = await asyncio.to_thread(plumbline, config, "timeline")
    times = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert times == sorted(times)
    assert len(times) > await busy_ledger.last_sequence()  # an outcome that carries effects has a line for each
    done = await asyncio.to_thread(plumbline, config, "timeline", "--json")
    printed = [json.loads(line)["id"] for line in done.stdout.splitlines()]
    assert printed == [stored.event.id async for stored in busy_ledger.read()]


async def test_an_unknown_pod_is_refused_with_the_known_ones(busy_ledger: JetStreamLedger, config: Path) -> None:
    done = await asyncio.to_thread(plumbline, config, "timeline", "shop/nope")
    assert (done.returncode, done.stdout) == (1, "")
    assert "neither a pod nor a container ID shop/nope; it knows the pods shop/web-0, shop/web-1" in done.stderr


async def test_json_has_one_event_per_line_without_secrets(busy_ledger: JetStreamLedger, config: Path) -> None:
    done = await asyncio.to_thread(plumbline, config, "timeline", "web-0", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["type"] == "AttachRequested"
    assert events[0]["data"]["pod"] == {"namespace": "shop", "name": "web-0", "uid": "uid-0"}
    assert "(redacted)" in events[0]["data"]["config"]
    assert SECRET not in done.stdout


async def test_since_hides_older_events_but_keeps_relative_times(busy_ledger: JetStreamLedger, config: Path) -> None:
    header, *everything = (await asyncio.to_thread(plumbline, config, "timeline", "web-0")).stdout.splitlines()
    cut = everything[2].split()[0]
    done = await asyncio.to_thread(plumbline, config, "timeline", "web-0", "--since", cut)
    assert done.stdout.splitlines() == [header, *everything[2:]]
    assert (await asyncio.to_thread(plumbline, config, "timeline", "--since", "1h30m")).stdout == ""


@pytest.mark.parametrize("since", ["yesterdayish", "", "9999999d", "9" * 20 + "d", "0001-01-01T00:00:00+14:00"])
def test_an_invalid_since_is_wrong_usage(config: Path, since: str) -> None:
    wrong = plumbline(config, "timeline", "--since", since)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 4)
    assert "neither a duration" in wrong.stderr


def _interruptible() -> None:
    """Reset SIGINT: a test run in a shell's background ignores it, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def test_follow_continues_without_gap_and_ends_with_130(busy_ledger: JetStreamLedger, config: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        *MAIN,
        "--config",
        str(config),
        "timeline",
        "web-2",
        "--follow",
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=_interruptible,
    )
    assert child.stdout is not None
    try:
        assert (await child.stdout.readline()).startswith(b"TIME")
        assert b"attach of shop/web-2" in await child.stdout.readline()
        node, lines = Node("node-2"), 0
        while b"detached: eth0" not in await child.stdout.readline():
            lines += 1
        assert lines
        for event in (
            *node.attach("f" * 64, Pod("shop", "web-9", "u")),
            *node.attach("e" * 64, Pod("shop", "web-2", "new")),
        ):
            await busy_ledger.append(event)
        new = [await child.stdout.readline() for _ in range(5)]
        assert all(b"node-2  eeeeeeeeeeee" in line for line in new)
        assert b"attached: eth0" in new[-1]
        child.send_signal(signal.SIGINT)
        assert await child.wait() == 130
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_a_terminal_sees_failures_in_red(busy_ledger: JetStreamLedger, config: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    child = await asyncio.create_subprocess_exec(
        *MAIN, "--config", str(config), "timeline", "web-3", stdout=theirs, env=environment
    )
    os.close(theirs)
    assert await child.wait() == 0
    seen = os.read(ours, 65536).decode()
    os.close(ours)
    assert "\x1b[31m" in next(line for line in seen.splitlines() if "attach FAILED" in line)
    assert "\x1b" not in next(line for line in seen.splitlines() if "planned" in line)


async def test_an_unprintable_name_hides_nothing_else(ledger: JetStreamLedger, config: Path) -> None:
    for event in Node().attach("f" * 64, Pod("shop", "m\u00fcsli", "u")):
        await ledger.append(event)
    ours, theirs = pty.openpty()
    command = [*MAIN, "--config", str(config), "timeline"]
    child = await asyncio.create_subprocess_exec(
        *command, stdout=theirs, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    os.close(theirs)
    assert await child.wait() == 0
    assert b"attach of shop/m\\xfcsli requested" in os.read(ours, 65536)
    os.close(ours)


def test_a_failed_write_to_stdout_is_reported(config: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [*MAIN, "check-config", str(config)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "plumbline: No space left on device\n")


def test_an_early_interrupt_ends_like_a_late_one(config: Path) -> None:
    interrupted = "import importlib, os, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    interrupted += "importlib.import_module = lambda _: os.kill(os.getpid(), signal.SIGINT); "
    done = subprocess.run(
        [sys.executable, "-c", interrupted + "from reconciler.cli.main import main; main()", "timeline"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


async def test_lines_of_the_reconciler_have_all_columns(ledger: JetStreamLedger, config: Path) -> None:
    elected = ReconcilerElected(replica="r")
    await ledger.append(new_event(elected, node=NO_NODE))
    done = await asyncio.to_thread(plumbline, config, "timeline")
    assert done.stdout.splitlines()[1].split()[1:4] == ["-", "-", "reconciler"]


def test_a_ledger_without_permission_is_reported(config: Path) -> None:
    (config.parent / "run" / "ledger.json").mkdir(parents=True)
    done = plumbline(config, "timeline")
    named = f"{config.parent}/run/ledger.json"
    assert (done.returncode, done.stderr) == (2, f"plumbline: no ledger: {named} can't be read: Is a directory\n")


def test_a_snapshot_of_a_missing_database_creates_no_database(config: Path) -> None:
    done = plumbline(config, "snapshot", str(config.parent / "s"))
    assert (done.returncode, "start the reconciler first" in done.stderr) == (2, True)
    assert os.listdir(config.parent) == ["plumbline.json"]


async def test_verify_of_an_unknown_node_proves_nothing(busy_ledger: JetStreamLedger, config: Path) -> None:
    await JetStreamCommands(busy_ledger).make(command_stream())
    done = await asyncio.to_thread(plumbline, config, "verify", "--wait", "0.1", "--node", "node-l")
    assert done.returncode == 3
    assert "not checked: node node-l: the ledger has no events of it" in done.stdout


def test_a_missing_ledger_address_is_reported(config: Path) -> None:
    done = plumbline(config, "timeline")
    assert done.returncode == 4
    assert "start `plumbline up`, or set ledger.url" in done.stderr


def test_a_ledger_that_does_not_answer_is_reported(server: EmbeddedServer, config: Path) -> None:
    server.stop()
    for command in ("timeline", "verify"):
        done = plumbline(config, command)
        said = f"plumbline: no ledger answers at {server.url}: is `plumbline up`, or its nats-server, running?\n"
        assert (done.returncode, done.stdout, done.stderr) == (4, "", said)


async def test_follow_ends_when_the_ledger_is_lost(
    server: EmbeddedServer, busy_ledger: JetStreamLedger, config: Path
) -> None:
    child = await asyncio.create_subprocess_exec(
        *MAIN,
        "--config",
        str(config),
        "timeline",
        "--follow",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    await child.stdout.readline()
    server.stop()
    _, said = await child.communicate()
    assert child.returncode == 4
    assert said == b"plumbline: the ledger was lost: its server has not answered since; start the command again\n"


def test_help_names_the_commands() -> None:
    done = subprocess.run([*MAIN, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "timeline" in done.stdout
    assert "check-config" in done.stdout


def test_an_unknown_command_is_wrong_usage(config: Path) -> None:
    assert plumbline(config, "timeliner").returncode == 2


def test_check_config_prints_the_effective_configuration_without_the_password(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    section = {"database": "postgresql://plumbline:hunter2@db/plumbline"}
    path.write_text(json.dumps({"node": "n1", "manifests": str(tmp_path), "reconciler": section}))
    done = plumbline(path, "check-config", "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert (shown["node"], shown["stateDir"], shown["logLevel"]) == ("n1", "/var/lib/plumbline", "info")
    assert shown["reconciler"]["database"] == "postgresql://plumbline:***@db/plumbline"
    assert shown["worker"]["delegateTimeout"] == 20
    assert shown["adopt"]["cniDir"] == "/var/lib/cni/multus"


def test_check_config_marks_what_is_a_default(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"node": "n1", "worker": {"statusWait": 1, "network": {"confDri": "/x"}}}))
    done = plumbline(path, "check-config")
    assert (done.returncode, done.stderr) == (0, f"{path}: worker.network: nothing knows the key confDri\n")
    header, *rows = (tuple(line.split()) for line in done.stdout.splitlines())
    assert header == ("KEY", "VALUE", "FROM")
    assert {("node", "n1", "file"), ("worker.statusWait", "1.0", "file"), ("logLevel", "info", "default")} < set(rows)


@pytest.mark.parametrize(
    "settings",
    [
        {"manifests": "/nowhere"},
        {"ledger": {"url": "nats://a:1", "tokenFile": "/nowhere"}},
        {"hub": {"url": "tls://a:1", "tls": {"caFile": "/nowhere"}}},
        {"worker": {"kubernetes": {"kubeconfig": "/nowhere"}}},
        {"reconciler": {"kubernetes": {"kubeconfig": "/nowhere"}}},
    ],
)
def test_a_file_that_is_not_there_is_refused_unless_it_is_for_another_machine(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(settings))
    done = plumbline(path, "check-config")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"plumbline: {path}: [\w.]+: /nowhere does not exist\n", done.stderr)
    assert plumbline(path, "check-config", "--elsewhere").returncode == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"nod": "x"}', "there is no key nod: did you mean node?"),
        ('{"adpot": {}}', "there is no key adpot: did you mean adopt?"),
        ('{"reconciler": {"metrcs": {}}}', "there is no key reconciler.metrcs: did you mean reconciler.metrics?"),
        ('{"worker": {"kubernetes": {"podwait": 1}}}', "did you mean worker.kubernetes.podWait?"),
        ('{"adopt": {"cacheDir": []}}', "did you mean adopt.cacheDirs?"),
        ('{"ledger": {"x": 1}}', "possible are maxBytes, port, retentionHours, tokenFile, url"),
        ('{"stateDir": "here"}', "not an absolute path"),
        ('{"ledger": {"url": "foo"}}', "'foo', which is not like nats://host:4222"),
        ("{", "not JSON"),
    ],
)
def test_an_invalid_configuration_is_refused_with_its_error(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    done = plumbline(path, "check-config")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_the_path_argument_overrides_the_option(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[")
    done = plumbline(tmp_path / "good.json", "check-config", str(tmp_path / "bad.json"))
    assert "bad.json" in done.stderr


def test_check_config_refuses_what_the_worker_refuses(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"worker": 3}')
    done = plumbline(path, "check-config")
    assert done.returncode == 2
    assert "worker" in done.stderr


async def test_verify_proves_the_database_or_lists_differences(busy_ledger: JetStreamLedger, config: Path) -> None:
    await JetStreamCommands(busy_ledger).make(command_stream())
    arguments = ("verify", "--wait", "0.1")
    unseen = await asyncio.to_thread(plumbline, config, *arguments)
    assert unseen.returncode == 3
    assert "start the reconciler first" in unseen.stdout
    assert "node-1: its worker did not answer" in unseen.stdout
    store = Store(f"sqlite:///{config.parent}/reconciler.db", "NODE")
    store.prepare()
    store.apply([stored async for stored in busy_ledger.read()])
    done = await asyncio.to_thread(plumbline, config, *arguments, "--json")
    assert json.loads(done.stdout)["differences"] == []
    with sqlite3.connect(config.parent / "reconciler.db") as connection:
        connection.execute("UPDATE sandboxes SET phase = 'detached' WHERE live")
    connection.close()
    done = await asyncio.to_thread(plumbline, config, *arguments, "--node", "node-1")
    assert (done.returncode, done.stderr) == (1, "")
    assert f"pod shop/web-4, sandbox {container(4)[:12]} (eth0) on node node-1: the database differs" in done.stdout
    store.close()


async def test_timeline_and_verify_name_messages_that_are_no_events(busy_ledger: JetStreamLedger, config: Path) -> None:
    await JetStreamCommands(busy_ledger).make(command_stream())
    stray = "plumbline.ev.node-1.-.Stray"
    for _ in range(30):
        await busy_ledger.connection.request(stray, b"{}", action="store", each=90)
    first = await busy_ledger.last_sequence() - 29
    said = f"anomaly: message {first} under '{stray}' has no effect: not an event: Object missing required field"
    done = await asyncio.to_thread(plumbline, config, "timeline")
    assert done.returncode == 0
    assert "anomaly" not in done.stdout
    lines = done.stderr.splitlines()
    assert lines[0].startswith(said)
    assert (len(lines), lines[-1]) == (21, "anomaly: … and more")
    done = await asyncio.to_thread(plumbline, config, "verify", "--wait", "0.1")
    assert done.stdout.count("anomaly: message ") == 20
    assert said in done.stdout
    assert "anomaly: … and 10 more messages without effect" in done.stdout
    assert done.stderr == ""


def test_verify_without_a_ledger_fails(config: Path) -> None:
    done = plumbline(config, "verify")
    assert done.returncode == 4
    assert "no ledger" in done.stderr
