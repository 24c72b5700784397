"""The worker loads only modules that it needs: every node pays for its memory."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.support.repository import REPOSITORY

TOO_HEAVY = ("aiohttp", "sqlalchemy", "alembic", "kubernetes_asyncio", "click", "rich", "pygments")
LOAD_ALL = """
import importlib, pkgutil, sys
import nodeworker.__main__
for package in (nodeworker, importlib.import_module("events")):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.startswith(("nodeworker.host.install", "nodeworker.shim.hatch_build")):
            importlib.import_module(module.name)
print(*sys.modules)
"""


def test_each_part_of_the_worker_loads_only_needed_modules() -> None:
    done = subprocess.run([sys.executable, "-c", LOAD_ALL], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    loaded = set(done.stdout.split())
    assert {
        "nats",
        "nodeworker.__main__",
        "nodeworker.planning.cluster.apiserver.source",
        "events.nats.ledger",
    } <= loaded
    assert not loaded & set(TOO_HEAVY)


@pytest.mark.parametrize("name", TOO_HEAVY)
def test_modules_that_must_not_load_exist(name: str) -> None:
    assert importlib.util.find_spec(name) is not None


@pytest.mark.parametrize(("importer", "name"), [("events.nats.client.client", "aiohttp"), ("nodeworker", "rich")])
def test_a_hidden_package_can_be_imported_afterwards(importer: str, name: str) -> None:
    code = f"import {importer}, sys; assert {name!r} not in sys.modules; import {name}; print({name}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == name
