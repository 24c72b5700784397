"""Certificates as an operator makes them: an authority and its signed certificates, in PEM files."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Pair(NamedTuple):
    """A certificate and its key."""

    certificate: Path
    key: Path

    def tls(self, ca: Path) -> dict[str, str]:
        """Return the section that a nats-server has."""
        return {"cert_file": str(self.certificate), "key_file": str(self.key), "ca_file": str(ca)}


class Authority:
    """An authority whose files are in *folder*."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
        subject = ("-subj", f"/CN={name}", "-days", "2")
        _openssl("req", "-x509", *_EC, *subject, "-keyout", self._pair.key, "-out", self._pair.certificate)

    @property
    def certificate(self) -> Path:
        return self._pair.certificate

    def sign(self, name: str, *alternatives: str, days: int = 2) -> Pair:
        """Return a certificate for *name*, also for *alternatives* such as ``DNS:localhost``; of -1 *days*: over."""
        made = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={','.join(alternatives)}\n" if alternatives else "")
        _openssl("req", *_EC, "-subj", f"/CN={name}", "-keyout", made.key, "-out", request)
        signed_by = ("-CA", self._pair.certificate, "-CAkey", self._pair.key, "-CAcreateserial")
        into = ("-days", str(days), "-extfile", extensions, "-out", made.certificate)
        _openssl("x509", "-req", "-in", request, *signed_by, *into)
        return made


def _openssl(*words: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
