"""Credentials for a nats-server, and the checks of the server before a client sends any secret.

Certificates, keys and passwords are renewed while a process runs: files are replaced, as Kubernetes does with a secret.
So they are read for each connection. An error is one sentence that names the file or the server, never the content of
a file.
"""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import Any

import structlog

from events.nats.client.nats_py import errors
from events.process.settings import LedgerAddress, TlsSettings

log = structlog.get_logger(__name__)

_EXPIRED, _NOT_YET = 10, 9
_OTHER_NAME = frozenset({62, 64})
_NOT_SIGNED = frozenset({2, 18, 19, 20, 21})
"""Groups of OpenSSL's X509_V_ERR_* codes."""


class RefusedError(errors.Error):
    """The server refuses this client, or the reverse: a person has to change a file or a setting."""


class Access:
    """Credentials and TLS for the server at *address*."""

    def __init__(self, address: LedgerAddress) -> None:
        self._address = address
        self._tls = address.tls or (TlsSettings() if "tls://" in address.url else None)
        self._shown: set[str] = set()

    def credentials(self) -> dict[str, Any]:
        """Return the credentials as options of nats-py. With a client certificate there may be none."""
        name = {"tls_hostname": self._tls.server_name} if self._tls is not None else {}
        if not (self._address.token or self._address.token_file):
            return name
        if not self._address.user:
            return {**name, "token": self._secret}
        return {**name, "user": self._address.user, "password": self._secret}

    def context(self) -> ssl.SSLContext:
        """Return the TLS context for the files as they are now. Raises RefusedError.

        It is not ``ssl.create_default_context``: from Python 3.13 on that refuses the authorities of many clusters.
        """
        tls = self._tls or TlsSettings()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not tls.ca_file:
            context.load_default_certs()
        else:
            _pem(_content(tls.ca_file, "hub.tls.caFile"), tls.ca_file, "hub.tls.caFile", "CERTIFICATE")
            try:
                context.load_verify_locations(tls.ca_file)
            except ssl.SSLError as error:
                raise RefusedError(f"hub.tls.caFile {tls.ca_file} can't be used: {_words(error)}") from error
        if tls.cert_file:
            self._identify(context, tls)
        return context

    def judge(self, info: dict[str, Any], server: str) -> None:
        """Check the INFO of *server*, which comes in the clear, before anything is sent. Raises RefusedError.

        If a server accepts both, the configuration decides between TLS and plain text.
        """
        if self._tls is None:
            if info.get("tls_required"):
                raise RefusedError(
                    f"the nats-server at {server} requires TLS: set hub.tls, its caFile to the authority of the hub"
                )
            return
        if not (info.get("tls_required") or info.get("tls_available")):
            raise RefusedError(
                f"the nats-server at {server} does not speak TLS, which hub.tls or hub.url requires: "
                "configure TLS on the server, or remove it from both"
            )
        info["tls_required"] = True
        if info.get("tls_verify") and not self._tls.cert_file:
            raise RefusedError(
                f"the nats-server at {server} requires a client certificate: set hub.tls.certFile and hub.tls.keyFile"
            )

    def explained(self, error: Exception, server: str) -> Exception:
        """Return the error to raise for *error*, which occurred while connecting to *server*."""
        if isinstance(error, errors.Error) and "authorization" in str(error).lower():
            return RefusedError(f"the nats-server at {server} rejects {self._proof()}: is it for another server?")
        tls = self._tls
        if tls is None or not isinstance(error, (ValueError, ssl.SSLError, ConnectionError)):
            return error
        if isinstance(error, ssl.SSLCertVerificationError):
            return RefusedError(_unverified(error, server, tls.ca_file))
        if tls.cert_file and (isinstance(error, ConnectionError) or "ALERT" in str(error)):
            return RefusedError(
                f"the nats-server at {server} closed the connection after it received the certificate {tls.cert_file} "
                f"({_words(error)}): is it signed by the authority that the server requires, and still valid?"
            )
        return RefusedError(f"the TLS handshake with the nats-server at {server} failed: {_words(error)}")

    def _secret(self) -> str:
        path = self._address.token_file
        if not path:
            return self._address.token
        return self._private(path, "hub.tokenFile").decode(errors="replace").strip()

    def _proof(self) -> str:
        """Return a phrase for the credential that the server should accept."""
        address = self._address
        inside = f" in {address.token_file}" if address.token_file else ""
        if "password" in self.credentials():
            return f"the password{inside} of user {address.user}"
        if self._tls is not None and self._tls.cert_file and "token" not in self.credentials():
            return f"the user that the certificate {self._tls.cert_file} names"
        return f"the token{inside}"

    def _identify(self, context: ssl.SSLContext, tls: TlsSettings) -> None:
        _pem(_content(tls.cert_file, "hub.tls.certFile"), tls.cert_file, "hub.tls.certFile", "CERTIFICATE")
        _pem(self._private(tls.key_file, "hub.tls.keyFile"), tls.key_file, "hub.tls.keyFile", "PRIVATE KEY")
        try:
            # Without a password argument OpenSSL would ask for one on the terminal if the key is encrypted.
            context.load_cert_chain(tls.cert_file, tls.key_file, password="")
        except (ssl.SSLError, ValueError) as error:
            why = "the key is another certificate's" if "MISMATCH" in str(error) else _words(error)
            raise RefusedError(
                f"hub.tls.certFile {tls.cert_file} and hub.tls.keyFile {tls.key_file} can't be used: {why}; "
                "both are PEM, and the key has no password"
            ) from error

    def _private(self, path: str, key: str) -> bytes:
        """Return the content of a secret file, and warn once if other users can read it.

        That is no reason to refuse it: by default every user in a container can read a secret that Kubernetes mounts.
        """
        content = _content(path, key)
        if Path(path).stat().st_mode & stat.S_IROTH and path not in self._shown:
            self._shown.add(path)
            log.warning("secret_is_readable_by_others", key=key, path=path, wanted="mode 0400, or 0440 with a group")
        return content


def _content(path: str, key: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RefusedError(f"{key} can't be read: {path}: {error.strerror}") from error


def _pem(content: bytes, path: str, key: str, what: str) -> None:
    if f"{what}-----".encode() not in content:
        raise RefusedError(f"{key} {path} has no {what.lower()} in PEM: it begins with -----BEGIN …{what}-----")


def _unverified(error: ssl.SSLCertVerificationError, server: str, ca_file: str) -> str:
    whose = f"the certificate of the nats-server at {server}"
    if error.verify_code == _EXPIRED:
        return f"{whose}, or of its authority, has expired: renew it, and have the server read it"
    if error.verify_code == _NOT_YET:
        return f"{whose}, or of its authority, is not valid yet: is the clock right, here and where it was made?"
    if error.verify_code in _OTHER_NAME:
        return f"{whose} is another's ({error.verify_message}): name one that it has in hub.url or hub.tls.serverName"
    if error.verify_code in _NOT_SIGNED:
        by = f"the authority in {ca_file}" if ca_file else "an authority that this machine trusts"
        return f"{whose} is not signed by {by} ({error.verify_message}): set hub.tls.caFile to the authority of the hub"
    return f"{whose} can't be verified: {error.verify_message}"


def _words(error: Exception) -> str:
    """Return OpenSSL's reason, without the position in its source."""
    if isinstance(error, ssl.SSLError):
        return error.reason.replace("_", " ").lower() if error.reason else str(error).partition(" (_ssl.c")[0]
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
