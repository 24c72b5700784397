"""One configuration file for all processes of a machine, and the one way to read it.

A JSON object. What the processes share stands at its top; each has a section of its own. Keys are spelled as CNI and
Multus spell theirs, in camelCase.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from events.process.backoff import LOCAL_PAUSE, MAX_HUB_PAUSE

DEFAULT_PATH = Path("/etc/plumbline/plumbline.json")
ADDRESS_FILE = "ledger.json"
"""In the run folder: where the machine's own nats-server is, and its token; readable by its owner only."""


class SettingsError(ValueError):
    """The configuration can't be used; the message says which file and key, and why."""


def _check_urls(urls: str, key: str) -> None:
    """Raise ValueError where *urls* are none of a nats-server, or say what belongs in a file. It names no secret."""
    if "@" in urls:
        raise ValueError(f"{key} holds a user or a password, and is shown in logs: put these in user and tokenFile")
    for url in urls.split(","):
        try:
            parts = urlsplit(url if "://" in url else f"nats://{url}")
            usable = parts.scheme in ("nats", "tls") and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(f"{key} has {url!r}, which is not like nats://host:4222 or tls://host:4222")


class LedgerSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Where the node ledger is, and how much it may keep."""

    url: str = ""
    """Empty: the server that ``plumbline up`` runs."""
    token_file: str = ""
    port: int = 0
    """Of the server that ``plumbline up`` runs; 0: the kernel chooses."""
    max_bytes: int = 0
    """Of its store; 0: three quarters of what the disk has free at its start."""
    retention_hours: float = 168.0
    """How long the events of a sandbox stay after it is detached."""

    def __post_init__(self) -> None:
        if self.url:
            _check_urls(self.url, "ledger: url")


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """How TLS is spoken. Files are PEM, and read again for each connection; ``{node}`` stands for the node's name."""

    ca_file: str = ""
    """Authorities, one of which signed the server's certificate; empty: those that the machine trusts."""
    cert_file: str = ""
    """The client's own certificate, where the server wants one, and those between it and the authority."""
    key_file: str = ""
    """Its key, without a password."""
    server_name: str = ""
    """Name that the server's certificate must have; empty: the host in the server's URL."""

    def __post_init__(self) -> None:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("tls: certFile and keyFile go together, and one of them is missing")


class HubSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The cluster's ledger, which node ledgers are copied to and which the reconciler reads."""

    url: str
    """Of its nats-server, or several, separated by commas."""
    user: str = ""
    """Who the server knows the process as; ``{node}`` stands for the node's name. Empty: it asks for a token."""
    token_file: str = ""
    """The token, or the user's password; ``{node}`` as in ``user``."""
    tls: TlsSettings | None = None
    """None: TLS is not spoken, unless a URL begins with ``tls://``."""
    replicas: int = 1
    """Servers that hold each event: 3 in a cluster of servers."""

    def __post_init__(self) -> None:
        _check_urls(self.url, "hub: url")
        if self.user and not self.token_file and (self.tls is None or not self.tls.cert_file):
            raise ValueError("hub: user is set, and nothing that proves it: set tokenFile, or tls.certFile")


_DRIFT_POLICIES = ("repair", "observe", "off")
_LEAK_POLICIES = ("reclaim", "observe", "off")


class DriftSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What is done where a node is not what the ledger says."""

    policy: str = "repair"
    """``repair`` it, ``observe`` it (say so in the ledger, leave it), or ``off``: do not even look."""
    networks: dict[str, str] = {}
    """The same for single networks, by ``namespace/name``, or the name of a default network."""
    interval: float = 300.0
    """Seconds between two comparisons of the whole node; what changes meanwhile is seen as it happens."""

    def __post_init__(self) -> None:
        for key, policy in (("policy", self.policy), *self.networks.items()):
            if policy not in _DRIFT_POLICIES:
                raise ValueError(f"drift: {key} is {policy!r}, not one of {', '.join(_DRIFT_POLICIES)}")
        if self.interval < 1:
            raise ValueError(f"drift: interval is {self.interval}, not at least 1 second")

    def of(self, network: str) -> str:
        """Return the policy for *network*."""
        return self.networks.get(network, self.policy)

    @property
    def enabled(self) -> bool:
        """Whether anything is to be looked at."""
        return any(policy != "off" for policy in (self.policy, *self.networks.values()))


class LeakSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What is done where something is held that nobody owns."""

    policy: str = "reclaim"
    """``reclaim`` it, ``observe`` it (say so in the ledger, leave it), or ``off``: do not even look."""
    cri_socket: str = ""
    """Of the container runtime; empty: the first of containerd's and CRI-O's usual ones that is there."""
    interval: float = 30.0
    """Seconds between two looks at everything; a namespace that goes is seen as it happens."""
    results_dir: str = "/var/lib/cni/results"
    """Folder in which the container runtime keeps the results of ADDs."""

    def __post_init__(self) -> None:
        if self.policy not in _LEAK_POLICIES:
            raise ValueError(f"leaks: policy is {self.policy!r}, not one of {', '.join(_LEAK_POLICIES)}")
        if self.interval < 1:
            raise ValueError(f"leaks: interval is {self.interval}, not at least 1 second")


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Where a process serves ``/metrics``."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    """0: nowhere."""


class InstallSection(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Where the container runtime is told of Plumbline, and what it is told."""

    cni_bin_dir: str = "/opt/cni/bin"
    """The runtime's folder of plugins."""
    cni_conf_dir: str = "/etc/cni/net.d"
    """The runtime's folder of configurations."""
    cni_autoconf_dir: str = ""
    """Where the default network's configuration is; empty: with the others."""
    master_file_name: str = ""
    """Of that configuration; empty: the first by name."""
    network_name: str = ""
    """Name of our configuration; empty: that of the default network."""
    network: dict[str, Any] = {}
    """Multus' keys, for our configuration."""
    replace_multus: bool = False
    """Take the place of the Multus that the node has."""

    def __post_init__(self) -> None:
        for key, folder in (
            ("cniBinDir", self.cni_bin_dir),
            ("cniConfDir", self.cni_conf_dir),
            ("cniAutoconfDir", self.cni_autoconf_dir or "/"),
        ):
            if not folder.startswith("/"):
                raise ValueError(f"{key} is {folder!r}, not an absolute path")
        if "/" in self.master_file_name:
            raise ValueError(f"masterFileName is {self.master_file_name!r}, not the name of a file in cniAutoconfDir")


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What all processes share. Each process extends it by its own section."""

    node: str = ""
    """Empty: the environment's ``PLUMBLINE_NODE``, else the host's name, in lower case as kubelet has it."""
    state_dir: str = "/var/lib/plumbline"
    run_dir: str = "/run/plumbline"
    manifests: str = ""
    """Folder of manifests that pods and NetworkAttachmentDefinitions are read from, and status is written to."""
    ledger: LedgerSettings = LedgerSettings()
    hub: HubSettings | None = None
    """None: the node ledger is the whole ledger."""
    drift: DriftSettings = DriftSettings()
    leaks: LeakSettings = LeakSettings()
    install: InstallSection | None = None
    """What ``plumbline up`` keeps installed; None: nothing."""
    log_level: str = "info"
    """``debug``, ``info``, ``warning`` or ``error``."""

    def __post_init__(self) -> None:
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(f"logLevel is {self.log_level!r}, not one of debug, info, warning, error")
        for key, folder in (("stateDir", self.state_dir), ("runDir", self.run_dir)):
            if not folder.startswith("/"):
                raise ValueError(f"{key} is {folder!r}, not an absolute path")

    @property
    def node_name(self) -> str:
        """The node's name in the ledger."""
        return self.node or os.environ.get("PLUMBLINE_NODE") or socket.gethostname().lower()

    @property
    def store(self) -> Path:
        """Folder of the node ledger that ``plumbline up`` runs."""
        return Path(self.state_dir) / "ledger"

    @property
    def spool(self) -> Path:
        """Folder that the entry point leaves DEL requests in while no worker answers."""
        return Path(os.environ.get("PLUMBLINE_SPOOL") or Path(self.state_dir) / "spool")

    @property
    def socket(self) -> Path:
        """The worker's unix socket, where the entry point looks for it."""
        return Path(os.environ.get("PLUMBLINE_SOCKET") or Path(self.run_dir) / "worker.sock")


SettingsT = TypeVar("SettingsT", bound=Settings)


def load(path: Path | None, kind: type[SettingsT]) -> SettingsT:
    """Return the settings in *path*; None: the defaults. Raises SettingsError."""
    if path is None:
        return kind()
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path}: {error}") from error
    except msgspec.DecodeError as error:
        raise SettingsError(f"{path} is not JSON: {error}") from error


class LedgerAddress(msgspec.Struct, frozen=True):
    """Where the ledger's server is, and what it asks for."""

    url: str
    token: str = ""
    user: str = ""
    token_file: str = ""
    """Holds the token, where that may change."""
    tls: TlsSettings | None = None
    max_pause: float = LOCAL_PAUSE
    """Seconds; see ``events.process.backoff``."""


def hub_address(settings: Settings) -> LedgerAddress | None:
    """Return where the cluster's ledger is; None: there is none.

    What is in its files is found out by whoever connects: a node attaches also when it can't reach the hub.
    """
    hub = settings.hub
    if hub is None:
        return None

    def named(text: str) -> str:
        return text.replace("{node}", settings.node_name)

    tls = hub.tls and replace(
        hub.tls,
        ca_file=named(hub.tls.ca_file),
        cert_file=named(hub.tls.cert_file),
        key_file=named(hub.tls.key_file),
    )
    return LedgerAddress(hub.url, "", named(hub.user), named(hub.token_file), tls, MAX_HUB_PAUSE)


def ledger_address(settings: Settings) -> LedgerAddress:
    """Return where the ledger is. Raises SettingsError when it is configured nowhere and none runs here."""
    configured = settings.ledger
    try:
        if configured.url:
            token = Path(configured.token_file).read_text().strip() if configured.token_file else ""
            return LedgerAddress(configured.url, token)
        return msgspec.json.decode((Path(settings.run_dir) / ADDRESS_FILE).read_bytes(), type=LedgerAddress)
    except FileNotFoundError as error:
        raise SettingsError(
            f"no ledger: {error.filename} is missing; start `plumbline up`, or set ledger.url"
        ) from error
    except OSError as error:
        raise SettingsError(f"no ledger: {error.filename} can't be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise SettingsError(f"no ledger: {settings.run_dir}/{ADDRESS_FILE}: {error}") from error
