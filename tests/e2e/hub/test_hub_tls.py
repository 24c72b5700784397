"""A node, a hub and a reconciler that know each other by certificates, with the rights that ``users.py`` gives."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from events.exit_codes import ExitCode
from events.nats.commands import ensure_commands
from events.nats.ledger import JetStreamLedger
from events.process.settings import LedgerAddress, TlsSettings
from events.schema import NodeCompared, StatusPublished
from tests.e2e.hub.test_commands import comparison
from tests.e2e.hub.test_hub import Cluster
from tests.support.nats.certificates import Authority, Pair
from tests.support.nats.hub_servers import HubServers
from tests.support.node.node import MakeNode, Node
from tests.support.repository import REPOSITORY
from tests.support.run.fork_server import plumbline
from tests.support.waiting import eventually

RECONCILER = "reconciler"


def users() -> Any:
    """Return the module that makes a hub's users."""
    path = REPOSITORY / "deploy" / "kubernetes" / "with-hub" / "users.py"
    spec = importlib.util.spec_from_file_location("hub_users", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Trust:
    """What the hub, the node and the reconciler have in *folder*: certificates, and passwords where *mutual* is not."""

    def __init__(self, folder: Path, node: Node, *, mutual: bool) -> None:
        self.folder = folder
        self.mutual = mutual
        self.authority = Authority(folder)
        self.hub = self.authority.sign("hub", "DNS:localhost", "IP:127.0.0.1")
        for name in (node.name, RECONCILER):
            self._own(name, self.authority.sign(name, f"DNS:{name}"))
        tls = self.hub.tls(self.authority.certificate) | {"verify_and_map": mutual}
        known = [users().worker(node.name, "pw-node"), users().reconciler("pw-reconciler")]
        for user in known:
            password = folder / user["user"] / "password"
            password.touch(mode=0o600)
            password.write_text(user["password"])
            if mutual:
                del user["password"]
        self.servers = {"tls": tls, "authorization": {"users": known}}
        self.clients = {
            "user": "{node}",
            "tls": {"caFile": str(self.authority.certificate)} | (self._pair("{node}") if mutual else {}),
        } | ({} if mutual else {"tokenFile": str(folder / "{node}" / "password")})

    def address(self, url: str) -> LedgerAddress:
        """Return how the reconciler goes there."""
        own = self.folder / RECONCILER
        if not self.mutual:
            tls = TlsSettings(ca_file=str(self.authority.certificate))
            return LedgerAddress(url, user=RECONCILER, token_file=str(own / "password"), tls=tls)
        pair = {"cert_file": str(own / "tls.crt"), "key_file": str(own / "tls.key")}
        return LedgerAddress(url, user=RECONCILER, tls=TlsSettings(ca_file=str(self.authority.certificate), **pair))

    def _own(self, name: str, pair: Pair) -> None:
        (self.folder / name).mkdir()
        pair.certificate.rename(self.folder / name / "tls.crt")
        pair.key.rename(self.folder / name / "tls.key")

    def _pair(self, name: str) -> dict[str, str]:
        return {"certFile": f"{self.folder}/{name}/tls.crt", "keyFile": f"{self.folder}/{name}/tls.key"}


class TlsCluster(Cluster):
    """A cluster whose hub is spoken to by TLS; *at_reconciler* is the configuration where that runs."""

    def __init__(self, node: Node, servers: HubServers, trust: Trust) -> None:
        super().__init__(node, servers, trust.clients)
        self.trust = trust
        servers.address = trust.address(servers.url)
        settings = json.loads(node.config.read_text())
        del settings["ledger"]  # it is the nodes', and not within the reconciler's reach
        self.at_reconciler = trust.folder / "reconciler.json"
        self.at_reconciler.write_text(json.dumps({**settings, "node": RECONCILER, "runDir": str(trust.folder)}))


@pytest.fixture(params=["password", "mutual"])
def cluster(request: pytest.FixtureRequest, make_node: MakeNode, tmp_path: Path) -> Iterator[TlsCluster]:
    node = make_node()
    trust = Trust(tmp_path, node, mutual=request.param == "mutual")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        servers = HubServers(Path(folder), extra=trust.servers)
        servers.start()
        try:
            yield TlsCluster(node, servers, trust)
        finally:
            node.settle()
            node.terminate()
            assert node.ended() == 0
            servers.kill()


def test_everything_goes_over_tls(cluster: TlsCluster) -> None:
    node = cluster.node
    node.start()
    with cluster.reconciler(cluster.at_reconciler):
        pod = node.samplepod()
        assert pod.add().exit_code == 0
        cluster.assert_same()

        def published() -> bool:
            return any(isinstance(event.data, StatusPublished) for event in at_hub(cluster))

        eventually(published, "the reconciler has projected and published", 40.0)

        sent = comparison(node, 1)

        async def send(ledger: JetStreamLedger) -> None:
            await (await ensure_commands(ledger)).send(sent)

        cluster.with_hub(send)

        def done() -> bool:
            found = [event.data.request for event in cluster.at_hub() if isinstance(event.data, NodeCompared)]
            return sent.id in found

        eventually(done, "a command came down, and its outcome went up", 40.0)
    rebuilt = plumbline(cluster.at_reconciler, "rebuild")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert int(rebuilt.stdout.split()[-1]) > 0
    printed = plumbline(cluster.at_reconciler, "timeline", "samplepod", "--json")
    assert printed.returncode == 0, printed.stderr
    assert "AttachCompleted" in printed.stdout
    assert printed.stderr == ""
    assert pod.delete().exit_code == 0
    cluster.assert_same()
    assert "pw-" not in node.log.read_text()


def at_hub(cluster: Cluster) -> list[Any]:
    async def read(ledger: JetStreamLedger) -> list[Any]:
        return [stored.event async for stored in ledger.read()]

    return cluster.with_hub(read)


def test_missing_hub_certificate_delays_no_pod(cluster: TlsCluster) -> None:
    node, ca = cluster.node, cluster.trust.authority.certificate
    moved = ca.with_suffix(".moved")
    ca.rename(moved)
    node.start()
    assert node.samplepod().add().exit_code == 0
    sentence = f"hub.tls.caFile can't be read: {ca}: No such file or directory"
    eventually(lambda: "hub_not_connected" in node.log.read_text(), "the worker says that it has no hub")
    assert sentence in node.log.read_text()
    for words in (["rebuild"], ["verify"], ["timeline", "samplepod"]):
        refused = plumbline(cluster.at_reconciler, *words)
        assert (refused.returncode, refused.stderr) == (ExitCode.NO_LEDGER, f"plumbline: {sentence}\n")
    reconciler = [sys.executable, "-m", "reconciler", "--config", str(cluster.at_reconciler)]
    done = subprocess.run(reconciler, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"plumbline: {sentence}"
    assert "Traceback" not in done.stderr
    moved.rename(ca)
    cluster.assert_same()
    assert "Traceback" not in node.log.read_text()
