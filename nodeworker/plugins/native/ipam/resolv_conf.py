"""Read the DNS settings for containers from a file of the node (resolv.conf(5))."""

from __future__ import annotations

import os

from nodeworker.plugins.spec.results import DNS

_LONGEST = 64 * 1024
"""Maximum bytes read; a usual file has a few hundred."""


def resolver(path: str) -> DNS:
    """Return the DNS settings in the file at *path*. Raises OSError."""
    nameservers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    domain = ""
    for line in _text(path).splitlines():
        match line.split():
            case [word, *_] if word[0] in "#;":
                pass
            case ["nameserver", server, *_]:
                nameservers.append(server)
            case ["domain", name, *_]:
                domain = name
            case ["search", *names]:
                search += names
            case ["options", *words]:
                options += words
            case _:
                pass
    return DNS(nameservers=tuple(nameservers), domain=domain, search=tuple(search), options=tuple(options))


def _text(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, _LONGEST).decode(errors="replace")
    finally:
        os.close(fd)
