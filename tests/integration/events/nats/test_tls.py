"""TLS to a real nats-server: accepted and refused certificates, error sentences, renewed files."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from events.ledger.ledger import LedgerError
from events.nats.ledger import JetStreamLedger
from events.nats.streams import hub_stream
from events.process.backoff import MAX_HUB_PAUSE
from events.process.settings import LedgerAddress, Settings, SettingsError, TlsSettings, hub_address, load
from events.schema import NodeName
from tests.support.nats.certificates import Authority, Pair
from tests.support.nats.hub_servers import HubServers
from tests.support.stories.events import EventFactory
from tests.support.waiting import until

NODE = NodeName("worker-1")
SECRET = "hunter2"
LOCAL = ("DNS:localhost", "IP:127.0.0.1")


class Certificates:
    """Certificates of two authorities: the hub's, and one that the hub does not know."""

    def __init__(self, folder: Path) -> None:
        ours, other = Authority(folder / "ours"), Authority(folder / "other", "other")
        self.ca, self.other_ca = ours.certificate, other.certificate
        self.hub, self.elsewhere = ours.sign("hub", *LOCAL), ours.sign("elsewhere", "DNS:hub.example.net")
        self.over = ours.sign("over", *LOCAL, days=-1)
        self.worker, self.stranger = ours.sign("worker", f"DNS:{NODE}"), other.sign("stranger", f"DNS:{NODE}")
        self.old = ours.sign("old", f"DNS:{NODE}", days=-1)
        self.torn = folder / "torn.pem"
        self.torn.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        self.mixed = Pair(self.worker.certificate, self.stranger.key)

    def server(self, pair: Pair | None = None, **tls: Any) -> dict[str, Any]:
        """Return the configuration of a server with *pair*."""
        return {"tls": (pair or self.hub).tls(self.ca) | tls}

    def client(self, pair: Pair | None = None, ca: Path | None = None) -> TlsSettings:
        own = {} if pair is None else {"cert_file": str(pair.certificate), "key_file": str(pair.key)}
        return TlsSettings(ca_file=str(ca or self.ca), **own)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


class Hubs:
    """Starts servers, and connects to them."""

    def __init__(self) -> None:
        self._started: list[HubServers] = []
        self._folders: list[tempfile.TemporaryDirectory[str]] = []

    def start(self, extra: dict[str, Any]) -> HubServers:
        self._folders.append(tempfile.TemporaryDirectory(dir="/dev/shm"))
        servers = HubServers(Path(self._folders[-1].name), extra=extra)
        self._started.append(servers)
        servers.start()
        return servers

    def end(self) -> None:
        for servers in self._started:
            servers.kill()
        for folder in self._folders:
            folder.cleanup()


@pytest.fixture
def hubs() -> Iterator[Hubs]:
    hubs = Hubs()
    yield hubs
    hubs.end()


async def connect(address: LedgerAddress) -> JetStreamLedger:
    async with asyncio.timeout(10):
        return await JetStreamLedger.connect(address, config=hub_stream(1), patience=3.0)


async def refusal(address: LedgerAddress) -> str:
    """Return the error of a refused connection to *address*."""
    with pytest.raises(LedgerError) as refused:
        await connect(address)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert SECRET not in sentence
    assert "_ssl.c" not in sentence
    return sentence


async def works(ledger: JetStreamLedger) -> bool:
    """Append an event and return whether it can be read."""
    event = EventFactory(NODE).note()
    sequence = await ledger.append(event)
    return [stored.event async for stored in ledger.read(after=sequence - 1)] == [event]


# --- what works ---


@pytest.mark.parametrize("scheme", ["nats", "tls"])
async def test_server_is_verified_by_its_certificate(made: Certificates, hubs: Hubs, scheme: str) -> None:
    url = hubs.start(made.server()).url.replace("nats://", f"{scheme}://")
    ledger = await connect(LedgerAddress(url, tls=made.client()))
    assert await works(ledger)
    await ledger.close()


async def test_end_of_a_tls_connection_warns_of_nothing(
    made: Certificates, hubs: Hubs, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio warns at the end of a connection unless its streams know that they use TLS."""
    servers = hubs.start(made.server())
    ledger = await connect(LedgerAddress(servers.url, tls=made.client()))
    servers.kill()
    await until(lambda: not ledger.connected)
    await ledger.close()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def test_user_and_password_work_over_tls(made: Certificates, hubs: Hubs, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(f"{SECRET}\n")
    users = {"authorization": {"users": [{"user": NODE, "password": SECRET}]}}
    url = hubs.start(made.server() | users).url
    ledger = await connect(LedgerAddress(url, user=NODE, token_file=str(tmp_path / "password"), tls=made.client()))
    assert await works(ledger)
    await ledger.close()


async def test_client_is_verified_by_its_certificate(made: Certificates, hubs: Hubs) -> None:
    url = hubs.start(made.server(verify=True)).url
    ledger = await connect(LedgerAddress(url, tls=made.client(made.worker)))
    assert await works(ledger)
    await ledger.close()


async def test_client_certificate_replaces_a_password(made: Certificates, hubs: Hubs) -> None:
    users = {"authorization": {"users": [{"user": NODE}]}}
    url = hubs.start(made.server(verify_and_map=True) | users).url
    ledger = await connect(LedgerAddress(url, user=NODE, tls=made.client(made.worker)))
    assert await works(ledger)
    await ledger.close()


async def test_server_name_may_differ_from_the_url(made: Certificates, hubs: Hubs) -> None:
    url = hubs.start(made.server(made.elsewhere)).url
    ledger = await connect(LedgerAddress(url, tls=replace(made.client(), server_name="hub.example.net")))
    assert await works(ledger)
    await ledger.close()


async def test_tls_is_used_if_the_server_accepts_both(made: Certificates, hubs: Hubs) -> None:
    url = hubs.start(made.server() | {"allow_non_tls": True}).url
    assert "is not signed by" in await refusal(LedgerAddress(url, tls=made.client(ca=made.other_ca)))
    ledger = await connect(LedgerAddress(url, tls=made.client()))
    assert await works(ledger)
    await ledger.close()


async def test_bad_certificate_of_one_server_does_not_block_others(made: Certificates, hubs: Hubs) -> None:
    bad, good = hubs.start(made.server(made.over)).url, hubs.start(made.server()).url
    for _ in range(5):  # the order of the servers is random
        ledger = await connect(LedgerAddress(f"{bad},{good}", tls=made.client()))
        assert ledger.connected
        await ledger.close()
    assert "has expired" in await refusal(LedgerAddress(f"{bad},{bad}", tls=made.client()))


# --- what does not, and how it is said ---


async def test_refused_server_certificate_is_explained(made: Certificates, hubs: Hubs) -> None:
    good = hubs.start(made.server()).url
    where = good.removeprefix("nats://")
    assert await refusal(LedgerAddress(good, tls=made.client(ca=made.other_ca))) == (
        f"the certificate of the nats-server at {where} is not signed by the authority in {made.other_ca} "
        "(unable to get local issuer certificate): set hub.tls.caFile to the authority of the hub"
    )
    assert "an authority that this machine trusts" in await refusal(LedgerAddress(good, tls=TlsSettings()))
    assert await refusal(LedgerAddress(good)) == (
        f"the nats-server at {where} requires TLS: set hub.tls, its caFile to the authority of the hub"
    )
    over = hubs.start(made.server(made.over)).url
    assert await refusal(LedgerAddress(over, tls=made.client())) == (
        f"the certificate of the nats-server at {over.removeprefix('nats://')}, or of its authority, has expired: "
        "renew it, and have the server read it"
    )
    elsewhere = hubs.start(made.server(made.elsewhere)).url.replace("127.0.0.1", "localhost")
    assert await refusal(LedgerAddress(elsewhere, tls=made.client())) == (
        f"the certificate of the nats-server at {elsewhere.removeprefix('nats://')} is another's "
        "(Hostname mismatch, certificate is not valid for 'localhost'.): "
        "name one that it has in hub.url or hub.tls.serverName"
    )


@pytest.mark.parametrize("scheme", ["nats", "tls"])
async def test_client_sends_nothing_to_a_server_without_tls(made: Certificates, scheme: str) -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"version":"2.15.1","max_payload":1048576,"auth_required":true}\r\n')
        heard.set_result(await reader.read())
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server:
        where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        tls = made.client() if scheme == "nats" else None
        assert await refusal(LedgerAddress(f"{scheme}://{where}", SECRET, NODE, tls=tls)) == (
            f"the nats-server at {where} does not speak TLS, which hub.tls or hub.url requires: "
            "configure TLS on the server, or remove it from both"
        )
        assert await heard == b""


async def test_refused_client_certificate_is_explained(made: Certificates, hubs: Hubs, tmp_path: Path) -> None:
    verifying = hubs.start(made.server(verify=True)).url
    where = verifying.removeprefix("nats://")
    assert await refusal(LedgerAddress(verifying, tls=made.client())) == (
        f"the nats-server at {where} requires a client certificate: set hub.tls.certFile and hub.tls.keyFile"
    )
    for pair in (made.stranger, made.old):
        said = await refusal(LedgerAddress(verifying, tls=made.client(pair)))
        assert f"{where} closed the connection after it received the certificate {pair.certificate}" in said
    mapping = hubs.start(made.server(verify_and_map=True) | {"authorization": {"users": [{"user": "other"}]}}).url
    said = await refusal(LedgerAddress(mapping, user=NODE, tls=made.client(made.worker)))
    assert f"rejects the user that the certificate {made.worker.certificate} names" in said
    (tmp_path / "password").write_text(SECRET)
    users = {"authorization": {"users": [{"user": NODE, "password": "other"}]}}
    asking = hubs.start(made.server() | users).url
    said = await refusal(LedgerAddress(asking, user=NODE, token_file=f"{tmp_path}/password", tls=made.client()))
    assert f"rejects the password in {tmp_path}/password of user {NODE}" in said


async def test_unusable_file_is_named(made: Certificates, hubs: Hubs, tmp_path: Path) -> None:
    url = hubs.start(made.server(verify=True)).url
    key = str(made.worker.key)
    own = made.client(made.worker)
    for tls, said in (
        (replace(own, ca_file="/absent"), "hub.tls.caFile can't be read: /absent: No such file or directory"),
        (replace(own, ca_file="/"), "hub.tls.caFile can't be read: /: Is a directory"),
        (replace(own, ca_file=key), f"hub.tls.caFile {key} has no certificate in PEM"),
        (replace(own, ca_file=str(made.torn)), f"hub.tls.caFile {made.torn} can't be used"),
        (replace(own, cert_file="/absent"), "hub.tls.certFile can't be read: /absent: No such file or directory"),
        (replace(own, key_file="/absent"), "hub.tls.keyFile can't be read: /absent: No such file or directory"),
        (replace(own, cert_file=key), f"hub.tls.certFile {key} has no certificate in PEM"),
        (replace(own, key_file=own.cert_file), f"hub.tls.keyFile {own.cert_file} has no private key in PEM"),
        (
            replace(own, cert_file=str(made.torn)),
            f"hub.tls.certFile {made.torn} and hub.tls.keyFile {key} can't be used",
        ),
        (replace(own, server_name=".hub"), " failed: "),
        (made.client(made.mixed), "the key is another certificate's"),
    ):
        assert said in await refusal(LedgerAddress(url, tls=tls))
    absent = str(tmp_path / "absent")
    said = await refusal(LedgerAddress(url, user=NODE, token_file=absent, tls=own))
    assert said == f"hub.tokenFile can't be read: {absent}: No such file or directory"


async def test_key_readable_by_others_is_logged_once(made: Certificates, hubs: Hubs, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(made.worker.key.read_bytes())
    servers = hubs.start(made.server(verify=True))
    tls = replace(made.client(made.worker), key_file=str(key))
    for mode, times in ((0o644, 1), (0o440, 0), (0o400, 0)):
        key.chmod(mode)
        with capture_logs() as logs:
            ledger = await connect(LedgerAddress(servers.url, tls=tls))
            servers.kill()
            servers.start()
            await until(lambda ledger=ledger: ledger.generation == 2)
            await ledger.close()
        said = [line["path"] for line in logs if line["event"] == "secret_is_readable_by_others"]
        assert said == [str(key)] * times


# --- what is renewed ---


class Mount:
    """A secret as Kubernetes mounts it: its files are links into a folder, which is replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        for name in ("ca.crt", "tls.crt", "tls.key"):
            (folder / name).symlink_to(f"..data/{name}")

    def put(self, ca: Path, pair: Pair) -> None:
        self._count += 1
        new = self._folder / f"..{self._count}"
        new.mkdir()
        for name, path in (("ca.crt", ca), ("tls.crt", pair.certificate), ("tls.key", pair.key)):
            (new / name).write_bytes(path.read_bytes())
        (self._folder / "..data_tmp").symlink_to(new.name)
        (self._folder / "..data_tmp").rename(self._folder / "..data")

    @property
    def tls(self) -> TlsSettings:
        ca, cert, key = (str(self._folder / name) for name in ("ca.crt", "tls.crt", "tls.key"))
        return TlsSettings(ca_file=ca, cert_file=cert, key_file=key)


async def test_next_connection_uses_renewed_files(made: Certificates, hubs: Hubs, tmp_path: Path) -> None:
    mount = Mount(tmp_path)
    mount.put(made.ca, made.worker)
    servers = hubs.start(made.server(verify=True))
    ledger = await connect(LedgerAddress(servers.url, tls=mount.tls))
    assert await works(ledger)
    servers.kill()
    renewed_authority = Authority(tmp_path / "renewed_authority")
    config = servers.folder / "hub-0.conf"
    renewed = {"tls": renewed_authority.sign("hub", *LOCAL).tls(renewed_authority.certificate) | {"verify": True}}
    config.write_text(json.dumps(json.loads(config.read_text()) | renewed))
    with capture_logs() as logs:
        servers.start()
        await until(lambda: any("is not signed by" in str(line.get("error")) for line in logs))
    assert not ledger.connected
    mount.put(renewed_authority.certificate, renewed_authority.sign("worker"))
    await until(lambda: ledger.connected)
    assert await works(ledger)
    await ledger.close()


async def test_next_connection_uses_a_renewed_password(made: Certificates, hubs: Hubs, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("before")
    servers = hubs.start(made.server() | {"authorization": {"users": [{"user": NODE, "password": "before"}]}})
    ledger = await connect(LedgerAddress(servers.url, user=NODE, token_file=str(password), tls=made.client()))
    servers.kill()
    config = servers.folder / "hub-0.conf"
    config.write_text(config.read_text().replace("before", "after"))
    servers.start()
    password.write_text("after")
    await until(lambda: ledger.connected)
    assert await works(ledger)
    await ledger.close()


@pytest.mark.parametrize("become", ["plain", "over"])
async def test_long_failing_attempts_leave_no_open_socket(made: Certificates, hubs: Hubs, become: str) -> None:
    servers = hubs.start(made.server())
    ledger = await connect(LedgerAddress(servers.url, tls=made.client()))
    servers.kill()
    config = servers.folder / "hub-0.conf"
    before = json.loads(config.read_text())
    del before["tls"]
    config.write_text(json.dumps(before if become == "plain" else before | made.server(made.over)))
    attempts = 0

    def count(*_: Any) -> None:
        nonlocal attempts
        attempts += 1

    client = ledger.connection._client
    explain = ledger.connection._access.explained
    ledger.connection._access.explained = lambda *arguments: (count(), explain(*arguments))[1]  # type: ignore[method-assign]
    servers.start()
    await until(lambda: attempts >= 3)
    before_files = len(os.listdir("/proc/self/fd"))
    await until(lambda: attempts >= 12)
    assert len(os.listdir("/proc/self/fd")) <= before_files + 1
    assert client.is_reconnecting
    started = time.monotonic()
    async with asyncio.timeout(5):
        await ledger.close()
    assert time.monotonic() - started < 3


# --- settings ---


@pytest.mark.parametrize(
    ("hub", "said"),
    [
        ({"url": "nats://a:4222", "tls": {"certFile": "/x"}}, "only one of certFile and keyFile is set"),
        ({"url": "nats://a:4222", "tls": {"keyFile": "/x"}}, "only one of certFile and keyFile is set"),
        ({"url": "nats://a:4222", "tls": {"cafile": "/x"}}, "cafile"),
        ({"url": "nats://a:4222", "user": "x"}, "user is set without credentials"),
        ({"url": f"nats://a:4222,nats://me:{SECRET}@b:4222"}, "use user and tokenFile"),
        ({"url": f"nats://me:x,{SECRET}/x@b:4222"}, "use user and tokenFile"),
        ({"url": f"nats://{SECRET}@b:4222"}, "use user and tokenFile"),
        ({"url": "https://a:4222"}, "url has 'https://a:4222', which is not like"),
        ({"url": "nats://a:x"}, "url has 'nats://a:x', which is not like"),
        ({"url": ""}, "url has '', which is not like"),
    ],
)
def test_contradictory_settings_are_refused(tmp_path: Path, hub: dict[str, Any], said: str) -> None:
    path = tmp_path / "plumbline.json"
    path.write_text(json.dumps({"hub": hub}))
    with pytest.raises(SettingsError) as refused:
        load(path, Settings)
    assert said in str(refused.value)
    assert SECRET not in str(refused.value)


def test_node_placeholder_is_replaced_in_file_names(tmp_path: Path) -> None:
    path = tmp_path / "plumbline.json"
    tls = {"caFile": "/a/ca.crt", "certFile": "/a/{node}/tls.crt", "keyFile": "/a/{node}/tls.key", "serverName": "hub"}
    hub = {"url": "a:4222,tls://b", "user": "{node}", "tls": tls}
    path.write_text(json.dumps({"node": "worker-1", "hub": hub}))
    assert hub_address(load(path, Settings)) == LedgerAddress(
        "a:4222,tls://b",
        user="worker-1",
        tls=TlsSettings(
            ca_file="/a/ca.crt", cert_file="/a/worker-1/tls.crt", key_file="/a/worker-1/tls.key", server_name="hub"
        ),
        max_pause=MAX_HUB_PAUSE,
    )
