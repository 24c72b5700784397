"""The configuration file of all processes of a machine, and the only code that reads it.

It is a JSON object. Shared settings are at its top level; each process has its own section. Keys are in camelCase,
as those of CNI and Multus.
"""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from events.exit_codes import ExitCode
from events.process.backoff import LOCAL_PAUSE, MAX_HUB_PAUSE
from events.process.setting_keys import unknown_keys

DEFAULT_PATH = Path("/etc/plumbline/plumbline.json")
SECTIONS = ("adopt", "reconciler", "worker")
"""The keys of the file that belong to one process each."""
ADDRESS_FILE = "ledger.json"
"""File in the run folder with the URL and token of the machine's own nats-server; only its owner can read it."""


class SettingsError(ValueError):
    """The configuration is invalid. The message names the file, the key and the reason."""

    exit_code: ClassVar[ExitCode] = ExitCode.WRONG


class NoLedgerError(SettingsError):
    """No ledger is configured, and none runs on this machine."""

    exit_code: ClassVar[ExitCode] = ExitCode.NO_LEDGER


def _check_urls(urls: str, key: str) -> None:
    """Raise ValueError if *urls* are not URLs of nats-servers, or contain a secret. The message contains no secret."""
    if "@" in urls:
        raise ValueError(f"{key} contains a user or a password, and logs show it: use user and tokenFile")
    for url in urls.split(","):
        try:
            parts = urlsplit(url if "://" in url else f"nats://{url}")
            usable = parts.scheme in ("nats", "tls") and parts.hostname and parts.port != 0
            usable = usable and ("://" in url or parts.port is not None)  # a word alone is rather a mistake than a host
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(f"{key} has {url!r}, which is not like nats://host:4222 or tls://host:4222")


class LedgerSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Where the node ledger is, and how much it may store."""

    url: str = ""
    """Empty: the server of ``plumbline up``."""
    token_file: str = ""
    port: int = 0
    """Port of the server of ``plumbline up``; 0: the kernel chooses."""
    max_bytes: int = 0
    """Limit of its store; 0: three quarters of the free disk space at its start."""
    retention_hours: float = 168.0
    """How long the events of a sandbox stay after its detach."""

    def __post_init__(self) -> None:
        if self.url:
            _check_urls(self.url, "ledger: url")


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """TLS. Files are PEM, and read again for each connection; ``{node}`` stands for the node's name."""

    ca_file: str = ""
    """Authorities for the server's certificate; empty: those that the machine trusts."""
    cert_file: str = ""
    """The client's certificate, if the server asks for one, followed by its intermediate certificates."""
    key_file: str = ""
    """Key of ``cert_file``, without a password."""
    server_name: str = ""
    """Name in the server's certificate; empty: the host in the server's URL."""

    def __post_init__(self) -> None:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("tls: only one of certFile and keyFile is set: set both")


class HubSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The cluster's ledger: node ledgers are copied to it, and the reconciler reads it."""

    url: str
    """URL of its nats-server, or several separated by commas."""
    user: str = ""
    """User name at the server; ``{node}`` stands for the node's name. Empty: authenticate with a token only."""
    token_file: str = ""
    """File with the token, or with the user's password; ``{node}`` as in ``user``."""
    tls: TlsSettings | None = None
    """None: no TLS, unless a URL begins with ``tls://``."""
    replicas: int = 1
    """Copies of each event: 3 in a cluster of servers."""

    def __post_init__(self) -> None:
        _check_urls(self.url, "hub: url")
        if self.user and not self.token_file and (self.tls is None or not self.tls.cert_file):
            raise ValueError("hub: user is set without credentials: set tokenFile, or tls.certFile")


_DRIFT_POLICIES = ("repair", "observe", "off")
_LEAK_POLICIES = ("reclaim", "observe", "off")


class DriftSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What to do if a node differs from the ledger."""

    policy: str = "repair"
    """``repair``; ``observe`` (record it and change nothing); or ``off`` (do not check)."""
    networks: dict[str, str] = {}
    """Policy of single networks, by ``namespace/name``, or by the name of a default network."""
    interval: float = 300.0
    """Seconds between two comparisons of the whole node. Changes in between are noticed at once."""

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
        """Whether any network is checked."""
        return any(policy != "off" for policy in (self.policy, *self.networks.values()))


class LeakSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What to do about a resource without an owner."""

    policy: str = "reclaim"
    """``reclaim``; ``observe`` (record it and change nothing); or ``off`` (do not scan)."""
    cri_socket: str = ""
    """Socket of the container runtime; empty: the first that exists of containerd's and CRI-O's usual ones."""
    interval: float = 30.0
    """Seconds between two scans. A namespace that is removed in between is noticed at once."""
    results_dir: str = "/var/lib/cni/results"
    """Folder in which the container runtime stores the results of ADDs."""

    def __post_init__(self) -> None:
        if self.policy not in _LEAK_POLICIES:
            raise ValueError(f"leaks: policy is {self.policy!r}, not one of {', '.join(_LEAK_POLICIES)}")
        if self.interval < 1:
            raise ValueError(f"leaks: interval is {self.interval}, not at least 1 second")


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Where a process serves ``/metrics``."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    """0: do not serve."""


class InstallSection(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """How Plumbline is installed for the container runtime."""

    cni_bin_dir: str = "/opt/cni/bin"
    """The runtime's folder of plugins."""
    cni_conf_dir: str = "/etc/cni/net.d"
    """The runtime's folder of configurations."""
    cni_autoconf_dir: str = ""
    """Folder of the default network's configuration; empty: ``cni_conf_dir``."""
    master_file_name: str = ""
    """File name of that configuration; empty: the first by name."""
    network_name: str = ""
    """Name of Plumbline's configuration; empty: that of the default network."""
    network: dict[str, Any] = {}
    """Keys of Multus for Plumbline's configuration."""
    replace_multus: bool = False
    """Replace the Multus of the node."""

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
    """The shared settings. Each process extends them with its own section."""

    node: str = ""
    """Empty: ``PLUMBLINE_NODE`` in the environment, else the host's name in lower case, as for kubelet."""
    state_dir: str = "/var/lib/plumbline"
    run_dir: str = "/run/plumbline"
    manifests: str = ""
    """Folder of manifests: pods and NetworkAttachmentDefinitions are read from it, network-status is written to it."""
    ledger: LedgerSettings = LedgerSettings()
    hub: HubSettings | None = None
    """None: the node ledger is the whole ledger."""
    drift: DriftSettings = DriftSettings()
    leaks: LeakSettings = LeakSettings()
    install: InstallSection | None = None
    """What ``plumbline up`` installs and monitors; None: nothing."""
    log_level: str = "info"
    """``debug``, ``info``, ``warning`` or ``error``."""

    def __post_init__(self) -> None:
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(f"logLevel is {self.log_level!r}, not one of debug, info, warning, error")
        for key, folder in (("stateDir", self.state_dir), ("runDir", self.run_dir)):
            if not folder.startswith("/"):
                raise ValueError(f"{key} is {folder!r}, not an absolute path")

    def files(self) -> dict[str, str]:
        """Return the files and folders that must exist, by the keys that name them."""
        named = {"manifests": self.manifests, "ledger.tokenFile": self.ledger.token_file}
        if self.hub is not None:
            named["hub.tokenFile"] = self.hub.token_file
        if self.hub is not None and self.hub.tls is not None:
            tls = self.hub.tls
            named |= {"hub.tls.caFile": tls.ca_file, "hub.tls.certFile": tls.cert_file, "hub.tls.keyFile": tls.key_file}
        return {key: path.replace("{node}", self.node_name) for key, path in named.items() if path}

    @property
    def node_name(self) -> str:
        """The node's name in the ledger."""
        return self.node or os.environ.get("PLUMBLINE_NODE") or socket.gethostname().lower()

    @property
    def store(self) -> Path:
        """Folder of the node ledger of ``plumbline up``."""
        return Path(self.state_dir) / "ledger"

    @property
    def spool(self) -> Path:
        """Folder in which the entry point spools DEL requests while the worker does not answer."""
        return Path(os.environ.get("PLUMBLINE_SPOOL") or Path(self.state_dir) / "spool")

    @property
    def socket(self) -> Path:
        """The worker's unix socket."""
        return Path(os.environ.get("PLUMBLINE_SOCKET") or Path(self.run_dir) / "worker.sock")


SettingsT = TypeVar("SettingsT", bound=Settings)


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--config`` to *parser*; its value is the path for ``load``, or None."""
    default = DEFAULT_PATH if DEFAULT_PATH.exists() else None
    text = f"configuration file (default: {DEFAULT_PATH}, if it exists)"
    parser.add_argument("--config", type=Path, default=default, help=text)


def load(path: Path | None, kind: type[SettingsT]) -> SettingsT:
    """Return the settings in *path*; None: the defaults. Raises SettingsError."""
    if path is None:
        return kind()
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    try:
        document = msgspec.json.decode(text)
        if isinstance(document, dict) and (problems := [*unknown_keys(document, kind, SECTIONS)]):
            raise SettingsError(f"{path}: {'; '.join(problems)}")
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path}: {error}") from error
    except msgspec.DecodeError as error:
        raise SettingsError(f"{path} is not JSON: {error}") from error


def missing_files(settings: Settings) -> list[str]:
    """Return a sentence about each file or folder that *settings* name and that is not on this machine."""
    return [f"{key}: {path} does not exist" for key, path in settings.files().items() if not Path(path).exists()]


class LedgerAddress(msgspec.Struct, frozen=True):
    """The URL of the ledger's server, and the credentials for it."""

    url: str
    token: str = ""
    user: str = ""
    token_file: str = ""
    """File with the token, read again for each connection."""
    tls: TlsSettings | None = None
    max_pause: float = LOCAL_PAUSE
    """Seconds; see ``events.process.backoff``."""


def hub_address(settings: Settings) -> LedgerAddress | None:
    """Return the address of the cluster's ledger; None: there is none.

    The connection reads the files, because a node attaches pods also if it can't reach the hub.
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
    """Return the address of the ledger.

    Raises SettingsError; NoLedgerError if none is configured and none runs on this machine.
    """
    configured = settings.ledger
    try:
        if configured.url:
            token = Path(configured.token_file).read_text().strip() if configured.token_file else ""
            return LedgerAddress(configured.url, token)
        return msgspec.json.decode((Path(settings.run_dir) / ADDRESS_FILE).read_bytes(), type=LedgerAddress)
    except FileNotFoundError as error:
        raise NoLedgerError(
            f"no ledger: {error.filename} is missing; start `plumbline up`, or set ledger.url"
        ) from error
    except OSError as error:
        raise SettingsError(f"no ledger: {error.filename} can't be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise SettingsError(f"no ledger: {settings.run_dir}/{ADDRESS_FILE}: {error}") from error
