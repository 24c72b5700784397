"""A real PostgreSQL for the tests, from Debian's package, on a unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SUPERUSER = "postgres"


class Postgres:
    """A private server; its databases are copies of a template."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found:
            pytest.skip("PostgreSQL is missing: install Debian's postgresql, as `.ci/setup test` does")
        if os.geteuid() != 0:
            pytest.skip("PostgreSQL is started as the user postgres, which only root can")
        self._bin = found[-1].parent
        self.folder = folder
        self._fsync = "on" if durable else "off"
        self._count = 0
        folder.mkdir()
        shutil.chown(folder, SUPERUSER)
        self._run("initdb", "-D", f"{folder}/data", "-A", "trust", "-N")
        self.start()

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses= -c fsync={self._fsync}"
        self._run("pg_ctl", "-w", "-D", f"{self.folder}/data", "-l", f"{self.folder}/log", "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-w", "-D", f"{self.folder}/data", "-m", "immediate", "stop")

    def database(self, template: str = "template1") -> str:
        """Create a database; return its name."""
        self._count += 1
        name = f"test{self._count}"
        self._run("createdb", "-h", str(self.folder), "-T", template, name)
        return name

    def url(self, name: str) -> str:
        return f"postgresql://{SUPERUSER}@/{name}?host={self.folder}"

    def _run(self, program: str, *arguments: str) -> None:
        command = ["setpriv", "--reuid", SUPERUSER, "--regid", SUPERUSER, "--clear-groups"]
        done = subprocess.run(
            [*command, self._bin / program, *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd="/",
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
