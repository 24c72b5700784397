"""The servers of ``with-hub-tls`` as deployed, with a certificate made as ``operate-a-hub.md`` says."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from events.nats.server import free_port
from events.process.settings import Settings, hub_address, load
from tests.integration.events.nats.test_tls import SECRET, refusal, works
from tests.support.nats.hub_servers import HubServers, connect_hub
from tests.support.repository import REPOSITORY

DEPLOY = REPOSITORY / "deploy" / "kubernetes"
DOMAIN = "plumbline-hub.kube-system.svc"


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[HubServers]:
    """Three servers on this machine, with the deployed configuration."""
    (tmp_path / "tls").mkdir()
    for line in (DEPLOY.parents[1] / "docs/how-to/operate-a-hub.md").read_text().splitlines():
        if line.startswith("openssl "):
            words = line.replace(".svc", ".svc,DNS:localhost").split()  # for the routes
            subprocess.run(words, cwd=tmp_path / "tls", check=True, capture_output=True)
    (tmp_path / "ca").mkdir()
    (tmp_path / "tls" / "ca.crt").rename(tmp_path / "ca" / "ca.crt")
    (tmp_path / "users").mkdir()
    users = f'users: [{{user: reconciler, password: "{SECRET}"}}]'
    (tmp_path / "users" / "users.conf").write_text(users)
    (tmp_path / "password").write_text(SECRET)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        servers = HubServers(Path(folder), 3)
        routes = [free_port() for _ in servers.ports]
        for index, port in enumerate(servers.ports):
            text = (DEPLOY / "with-hub-tls" / "hub.conf").read_text()
            text = text.replace("$POD_NAME", f"hub-{index}").replace('"/data"', f'"{servers.store(index)}"')
            text = text.replace("0.0.0.0:4222", f"127.0.0.1:{port}").replace("0.0.0.0:8222", "127.0.0.1:-1")
            text = text.replace("0.0.0.0:6222", f"127.0.0.1:{routes[index]}").replace("/etc/nats/", f"{tmp_path}/")
            text = text.replace("users/users.conf", os.path.relpath(tmp_path / "users" / "users.conf", folder))
            for other, route in enumerate(routes):
                text = text.replace(f"plumbline-hub-{other}.{DOMAIN}:6222", f"localhost:{route}")
            (Path(folder) / f"hub-{index}.conf").write_text(text)
        servers.start()
        yield servers
        servers.kill()


async def test_deployed_servers_form_a_cluster_that_clients_trust(deployed: HubServers, tmp_path: Path) -> None:
    configured = json.loads((DEPLOY / "with-hub-tls" / "plumbline.json").read_text())
    ours = tmp_path / "plumbline.json"
    ours.write_text(json.dumps({**configured, "node": "reconciler"}).replace("/etc/plumbline-hub", str(tmp_path)))
    address = hub_address(load(ours, Settings))
    assert address is not None
    assert address.tls is not None
    named = replace(address.tls, server_name=f"plumbline-hub-0.{DOMAIN}")
    deployed.address = replace(address, url=deployed.url, tls=named)
    ledger = await connect_hub(deployed)
    assert await works(ledger)
    said = await refusal(replace(deployed.address, tls=replace(named, server_name="example.net")))
    assert "certificate is not valid for 'example.net'" in said
    await ledger.close()
