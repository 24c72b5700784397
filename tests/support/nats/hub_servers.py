"""One nats-server or several that form a cluster, as a hub has them; each can be killed and started again."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from events.ledger.ledger import LedgerUnavailableError
from events.nats.ledger import JetStreamLedger
from events.nats.server import MAX_PAYLOAD, binary, free_port
from events.nats.streams import hub_stream
from events.process.child_process import die_with_parent
from events.process.settings import LedgerAddress

_START = 20.0


class HubServers:
    """Servers with their stores in *folder*. *extra* goes into the configuration of each."""

    def __init__(self, folder: Path, count: int = 1, extra: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.count = count
        self.ports = [free_port() for _ in range(count)]
        self.address = LedgerAddress(self.url)
        """How ``connect_hub`` goes there."""
        routes = [free_port() for _ in range(count)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        for index, port in enumerate(self.ports):
            config: dict[str, Any] = {
                "server_name": f"hub-{index}",
                "listen": f"127.0.0.1:{port}",
                "max_payload": MAX_PAYLOAD,
                "jetstream": {"store_dir": str(self.store(index)), "sync_interval": "always"},
            }
            if count > 1:
                peers = [f"nats://127.0.0.1:{route}" for route in routes]
                config["cluster"] = {"name": "hub", "listen": f"127.0.0.1:{routes[index]}", "routes": peers}
            (folder / f"hub-{index}.conf").write_text(json.dumps(config | (extra or {})))

    @property
    def url(self) -> str:
        return ",".join(f"nats://127.0.0.1:{port}" for port in self.ports)

    def store(self, index: int) -> Path:
        return self.folder / f"hub-{index}"

    def start(self, *indices: int) -> None:
        for index in indices or range(self.count):
            with (self.folder / f"hub-{index}.log").open("ab") as said:
                self._processes[index] = subprocess.Popen(
                    [binary(), "--config", str(self.folder / f"hub-{index}.conf")],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    preexec_fn=die_with_parent(),  # noqa: PLW1509  # the child only calls prctl
                )
        for index in indices or range(self.count):
            self._wait(index)

    def kill(self, *indices: int) -> None:
        for index in indices or tuple(self._processes):
            process = self._processes.pop(index)
            process.kill()
            process.wait()

    def signal(self, number: int, index: int = 0) -> None:
        self._processes[index].send_signal(number)

    def back_up(self, to: Path, index: int = 0) -> None:
        """Copy a store, of a server that does not run."""
        shutil.copytree(self.store(index), to)

    def restore(self, backup: Path | None, index: int = 0) -> None:
        """Put a store back as it was, or empty; of a server that does not run."""
        shutil.rmtree(self.store(index))
        if backup is not None:
            shutil.copytree(backup, self.store(index))

    def _wait(self, index: int) -> None:
        until = time.monotonic() + _START
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.ports[index]), timeout=1) as connection:
                    if connection.recv(4) == b"INFO":
                        return
            except OSError:
                pass
            assert time.monotonic() < until, (self.folder / f"hub-{index}.log").read_text()[-2000:]
            time.sleep(0.01)


async def connect_hub(servers: HubServers, patience: float = 20.0) -> JetStreamLedger:
    """Return the hub ledger, made where it is not there. Several servers elect a leader first."""
    async with asyncio.timeout(60):
        while True:
            try:
                config = hub_stream(servers.count)
                return await JetStreamLedger.connect(servers.address, config=config, patience=patience)
            except LedgerUnavailableError:
                await asyncio.sleep(0.1)
