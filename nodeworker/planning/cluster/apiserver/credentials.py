"""The address of the API server and the credentials for it: from a kubeconfig file, or from a pod's service account.

Tokens and certificates are renewed while the worker runs: their files are replaced. So each file is read again when it
changes, and when the API server no longer accepts its content.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import msgspec
import yaml

from events.process.settings import SettingsError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""The folder in which the kubelet mounts a pod's token and the cluster's certificate authority."""

Read: TypeAlias = Callable[[Path], bytes]

_UNSUPPORTED = ("exec", "auth-provider", "username", "proxy-url")


class Access(NamedTuple):
    """The parameters of a connection to the API server."""

    url: str
    """For people."""
    host: str
    port: int
    authority: str
    """For the Host header: IPv6 addresses in brackets."""
    prefix: str
    """Path below which the API is, without a slash at its end."""
    tls: ssl.SSLContext | None
    """None: without TLS, as to ``kubectl proxy``."""
    server_name: str | None
    """The name that the server's certificate must have."""
    token: str
    origin: str
    """The file of the token or certificate, for people."""


class _ReadFile(NamedTuple):
    signature: tuple[int, int, int]
    content: bytes


class Credentials:
    """Access to the API server from files. *build* creates it, and reads files with its argument only."""

    def __init__(self, build: Callable[[Read], Access]) -> None:
        """Raises SettingsError."""
        self._build = build
        self._files: dict[Path, _ReadFile] = {}
        self._access: Access | None = None
        self.renew()

    def current(self) -> Access:
        """Return the access: the same object until a file changes. Raises SettingsError."""
        if self._access is not None and all(_signature(path) == file.signature for path, file in self._files.items()):
            return self._access
        return self.renew()

    def renew(self) -> Access:
        """Return the access after reading all files again. Raises SettingsError."""
        files: dict[Path, _ReadFile] = {}

        def read(path: Path) -> bytes:
            # Take the signature first: if the file changes in between, it is read again next time.
            signature = _signature(path)
            try:
                content = path.read_bytes()
            except OSError as error:
                raise SettingsError(f"{path}: {error.strerror}") from error
            files[path] = _ReadFile(signature, content)
            return content

        access = self._build(read)
        if self._access is None or _contents(files) != _contents(self._files):
            self._access = access
        self._files = files
        return self._access


def from_kubeconfig(path: Path) -> Credentials:
    """Return the credentials of the current context of the kubeconfig file *path*. Raises SettingsError."""
    return Credentials(lambda read: _kubeconfig(path, read))


def in_cluster(environ: Mapping[str, str] = os.environ, folder: Path = SERVICE_ACCOUNT) -> Credentials:
    """Return a pod's credentials: the service in *environ*, the token in *folder*. Raises SettingsError."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise SettingsError(
            "KUBERNETES_SERVICE_HOST is not set, so this is not a pod of a cluster; configure a kubeconfig file instead"
        )
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}"

    def build(read: Read) -> Access:
        token = _text(read(folder / "token"), folder / "token")
        return _access(url, _context(read(folder / "ca.crt"), str(folder)), token, origin=str(folder / "token"))

    return Credentials(build)


class _Cluster(msgspec.Struct, rename="kebab"):
    server: str
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""


class _User(msgspec.Struct, rename="camel"):
    token: str = ""
    token_file: str = ""
    client_certificate: str = msgspec.field(default="", name="client-certificate")
    client_certificate_data: str = msgspec.field(default="", name="client-certificate-data")
    client_key: str = msgspec.field(default="", name="client-key")
    client_key_data: str = msgspec.field(default="", name="client-key-data")


class _Context(msgspec.Struct):
    cluster: str
    user: str = ""


def _kubeconfig(path: Path, read: Read) -> Access:
    where = f"kubeconfig {path}"
    try:
        content = yaml.safe_load(read(path))
        if not isinstance(content, dict):
            raise SettingsError(f"{where} is empty, or not a mapping")
        context = msgspec.convert(
            _named(content, "context", str(content.get("current-context") or ""), where), _Context
        )
        cluster = msgspec.convert(_named(content, "cluster", context.cluster, where), _Cluster)
        user = msgspec.convert(_named(content, "user", context.user, where) if context.user else {}, _User)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise SettingsError(f"{where}: {' '.join(str(error).split())}") from error

    def material(data: str, file: str) -> bytes:
        """Return the PEM text in *data*, or in *file*, whose path is relative to the kubeconfig file."""
        if not data:
            return read(path.parent / file) if file else b""
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise SettingsError(f"{where}: certificate or key data is not base64") from error

    # A literal token goes before a token file, as for kubectl.
    token_file = path.parent / user.token_file if user.token_file and not user.token else None
    token = user.token if token_file is None else _text(read(token_file), token_file)
    certificate = material(user.client_certificate_data, user.client_certificate)
    key = material(user.client_key_data, user.client_key)
    tls = None
    if cluster.server.startswith("https://"):
        authority = material(cluster.certificate_authority_data, cluster.certificate_authority)
        tls = _context(authority, where, verify=not cluster.insecure_skip_tls_verify)
        if certificate:
            _identify(tls, certificate, key, where)
    return _access(cluster.server, tls, token, origin=str(token_file or path), server_name=cluster.tls_server_name)


def _named(content: dict[Any, Any], kind: str, name: str, where: str) -> Any:
    """Return the *kind* with that *name*. Raises SettingsError."""
    for entry in content.get(f"{kind}s") or ():
        if isinstance(entry, dict) and entry.get("name") == name:
            found = entry.get(kind) or {}
            if unsupported := [key for key in _UNSUPPORTED if isinstance(found, dict) and found.get(key)]:
                raise SettingsError(
                    f"{where}: {kind} {name} uses {unsupported[0]}, which the worker does not support; "
                    f"use a token, a token file or a client certificate, and a server without a proxy"
                )
            return found
    raise SettingsError(f"{where} has no {kind} {name!r}")


def _access(url: str, tls: ssl.SSLContext | None, token: str, *, origin: str, server_name: str = "") -> Access:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if tls else 80)
    except ValueError as error:
        raise SettingsError(f"the API server's address {url!r} can't be used: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise SettingsError(f"the API server's address {url!r} is not of the form https://host:port")
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    name = (server_name or host) if tls else None
    return Access(url.rstrip("/"), host, port, authority, parts.path.rstrip("/"), tls, name, token, origin)


def _context(authority: bytes, where: str, *, verify: bool = True) -> ssl.SSLContext:
    """Return a TLS context for a server with a certificate of *authority*; empty: of an authority that the host trusts.

    Not ``ssl.create_default_context``: from Python 3.13 on it refuses the authorities of many clusters.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        if authority:
            context.load_verify_locations(cadata=authority.decode("ascii", errors="replace"))
        else:
            context.load_default_certs()
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError(f"{where}: the certificate authority can't be used: {error}") from error
    return context


def _identify(context: ssl.SSLContext, certificate: bytes, key: bytes, where: str) -> None:
    """Present *certificate*. OpenSSL reads files only, so these are in memory: no key is written to a disk."""
    memory = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(certificate + b"\n" + key)
        # Without a password here, OpenSSL would ask for one on the terminal if the key is encrypted.
        context.load_cert_chain(f"/proc/self/fd/{memory}", password="")
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError(f"{where}: the client certificate and key can't be used: {error}") from error
    finally:
        os.close(memory)


def _text(content: bytes, path: Path) -> str:
    """Return the token in *content*, which must be valid in an HTTP header. Raises SettingsError."""
    text = content.decode("ascii", errors="replace").strip()
    if not text or not text.isprintable() or "\ufffd" in text:
        raise SettingsError(f"{path} has no token")
    return text


def _signature(path: Path) -> tuple[int, int, int]:
    """Return a value that changes with the file; zeros if it does not exist."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0, 0
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _contents(files: Mapping[Path, _ReadFile]) -> dict[Path, bytes]:
    return {path: file.content for path, file in files.items()}
