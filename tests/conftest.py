"""What holds for every test."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from nodeworker import shim
from nodeworker.shim import build
from tests.support.run.distribution import Distribution, order
from tests.support.run.isolation import isolate

# An example's duration depends on the machine, and the same code must get the same examples.
hypothesis.settings.load_profile("ci")

IN_ORDER = ("the kernel has no ", "the machine already has a ")
"""How the reasons of skips begin that no installation can do anything about."""


@pytest.fixture(scope="session")
def entry_point(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The entry point of the source as it is now; `.ci/setup` compiles it where the user's cache lacks it."""
    out = tmp_path_factory.mktemp("shim") / "plumbline"
    build.build(shim.architecture(), out)
    return out


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-unexpected-skips",
        action="store_true",
        help="fail when a test was skipped for want of something that could have been installed",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Run the tests in separate namespaces. The workers of xdist are started there and need none themselves."""
    if os.geteuid() != 0 or hasattr(config, "workerinput") or config.option.collectonly:
        return None
    try:
        return isolate()
    except OSError as error:
        raise pytest.UsageError(
            f"root's tests run in separate namespaces, which the kernel refuses: {error}"
        ) from error


def pytest_configure(config: pytest.Config) -> None:
    # Without compiled files, every process of the run compiles the code, and pytest rewrites every assertion again.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if config.getoption("--no-unexpected-skips"):
        config.pluginmanager.register(_SkipJudge(), "skip-judge")


def _may_be_absent(reason: str) -> bool:
    """Return whether a skip for *reason* is allowed: the API server's binaries are optional."""
    return reason.startswith(IN_ORDER) or ("KUBEBUILDER_ASSETS" in reason and "KUBEBUILDER_ASSETS" not in os.environ)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long."""
    items.sort(key=order)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Distribution | None:
    """Distribute files among the processes in the order of the collection."""
    if config.option.dist != "loadfile":
        return None
    config.option.loadscopereorder = False
    return Distribution(config, log)


class _SkipJudge:
    """Turns a run with unexpected skips into a failed one, and says which they were."""

    def __init__(self) -> None:
        self._unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._judge(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._judge(report)

    def _judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            assert isinstance(report.longrepr, tuple)
            reason = str(report.longrepr[2]).removeprefix("Skipped: ")
            if not _may_be_absent(reason):
                self._unexpected.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self._unexpected:
            terminalreporter.write_line(f"skipped, and should have run: {line}", red=True)
