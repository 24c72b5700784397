"""The reference pages list every key, option, event type, error class and metric, with the code's own values."""

from __future__ import annotations

import contextlib
import io
import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import msgspec
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from events.exit_codes import ExitCode
from events.process import logs
from events.process.settings import load
from events.schema import TYPES, DriftKind, ErrorClass, LeakKind, Phase, WarningKind
from nodeworker.errors import CNI_CODES
from nodeworker.host.adopt.settings import AdoptSettings
from nodeworker.host.install.__main__ import main as installer
from nodeworker.metrics import WorkerMetrics
from nodeworker.settings import WorkerSettings
from reconciler.cli.main import COMMANDS, main
from reconciler.metrics import Metrics
from reconciler.settings import ReconcilerSettings
from reconciler.status.kubernetes.pod_events import OF_WARNING
from tests.support.repository import REPOSITORY

DOCS = REPOSITORY / "docs"
CONFIGURATION = (DOCS / "reference/configuration.md").read_text()
CLI = (DOCS / "reference/cli.md").read_text()
COMPUTED = {"worker.concurrency": "twice the cores, at least 8"}
"""Keys whose default differs from machine to machine, and what the page says of them."""


def rows(page: str) -> dict[str, tuple[str, ...]]:
    """Return the cells behind each name in backticks that begins a row of a table; several names share their cells."""
    found: dict[str, tuple[str, ...]] = {}
    for line in page.splitlines():
        if line.startswith("| `"):
            first, *cells = (cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|")))
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", first), tuple(cells))
    return found


# --- configuration ---


def structs_in(annotation: Any) -> list[type[msgspec.Struct]]:
    """Return the structs that *annotation* allows."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [each for argument in get_args(annotation) for each in structs_in(argument)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct) else []


def keys_of(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key of *struct*, with dots between sections, and its default; a section without default is no key."""
    hints = {field.name: field for field in msgspec.structs.fields(struct)}
    for field in hints.values():
        key = f"{prefix}{field.encode_name}"
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        inside = structs_in(field.type)
        if not inside or default is None:
            yield key, default
        for each in inside:
            yield from keys_of(each, f"{key}.")


FILE = (WorkerSettings, ReconcilerSettings, AdoptSettings)
"""What the processes read from the one configuration file."""
KEYS = {key: default for kind in FILE for key, default in keys_of(kind)}


@pytest.mark.parametrize("key", sorted(KEYS))
def test_configuration_key_is_documented_with_its_default(key: str) -> None:
    default, said = KEYS[key], rows(CONFIGURATION)
    if default is None and key not in said:  # the section's introduction says that it has no default
        section = CONFIGURATION.split(f"\n## `{key}`\n")[1].split("\n## ")[0]
        assert f"`{key}` itself is `none` by\ndefault" in section or f"`{key}` itself is `none` by default" in section
        return
    documented = said[key][0]
    if key in COMPUTED:
        assert documented == COMPUTED[key]
    elif default is msgspec.NODEFAULT:
        assert documented == "required"
    elif default is None:
        assert documented == "none"
    elif default == "":
        assert documented.startswith(("empty: ", "`PLUMBLINE_NODE`"))
    elif isinstance(default, str):
        assert documented.strip('`"') == default
    else:
        assert json.loads(documented.strip("`")) == json.loads(msgspec.json.encode(default))


def test_configuration_page_names_no_key_that_does_not_exist() -> None:
    text = CONFIGURATION.split("\n## Environment")[0]
    assert set(rows(text)) - {"PLUMBLINE_NODE"} <= set(KEYS)


def example() -> Any:
    """Return the complete example, without its comments."""
    (text,) = re.findall(r"```jsonc\n(.*?)```", CONFIGURATION, re.DOTALL)
    return json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))


def leaves(value: Any, prefix: str = "") -> Iterator[str]:
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, dict) and name not in KEYS:
            yield from leaves(inner, f"{name}.")
        elif isinstance(inner, dict) and KEYS[name] is None:
            yield name
            yield from leaves(inner, f"{name}.")
        else:
            yield name


def test_complete_example_has_every_key_and_is_valid(tmp_path: Path) -> None:
    assert sorted(leaves(example())) == sorted(KEYS)
    path = tmp_path / "plumbline.json"
    path.write_text(json.dumps(example()))
    done = CliRunner().invoke(main, ["check-config", "--elsewhere", str(path)])
    assert done.exit_code == 0, done.output
    for kind in FILE:
        load(path, kind)


def test_log_format_variable_is_documented() -> None:
    cells = rows(CONFIGURATION)[logs.FORMAT_VARIABLE]
    assert cells[0] == f"`{logs.AUTO}`"
    assert {logs.CONSOLE, logs.LOGFMT, logs.JSON} <= set(re.findall(r"`(\w+)`", cells[2]))


# --- command line ---


def help_of(*command: str) -> str:
    """Return what ``plumbline COMMAND --help`` prints, in this process: the installer has its own parser."""
    if command in (("install",), ("uninstall",)):
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
            installer([*command, "--help"])
        return printed.getvalue()
    done = CliRunner().invoke(main, [*command, "--help"])
    assert done.exit_code == 0, done.output
    return done.output


def exit_codes(text: str) -> dict[int, str]:
    """Return the codes in lines such as ``  3  a part could not be checked``."""
    return {int(code): meaning for code, meaning in re.findall(r"^\s+(\d+)\s+(\S.*)$", text, re.MULTILINE)}


def test_exit_codes_are_the_same_in_code_help_and_documentation() -> None:
    documented = set(map(int, re.findall(r"^\| (\d+) \|", CLI.split("\n## ")[0], re.MULTILINE)))
    assert documented == set(ExitCode) == set(exit_codes(help_of().partition("Exit codes")[2]))


@pytest.mark.parametrize("command", COMMANDS)
def test_command_has_no_exit_code_that_the_table_has_not(command: str) -> None:
    said = re.split("[Ee]xit\\s+codes:", help_of(command))[1].partition("ptions:")[0]
    codes = set(map(int, re.findall(r"(?:^|[ ,;])(\d+)(?= )", " ".join(said.split()))))
    assert codes
    assert codes <= set(ExitCode)


def options_in_help(*command: str) -> set[str]:
    said = help_of(*command).partition("ptions:\n")[2]
    return set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", said, re.MULTILINE)) - {"--help"}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_documented_with_all_its_options(command: str) -> None:
    section = CLI.split(f"\n## `plumbline {command}`\n")[1].split("\n## ")[0]
    documented = {option for name in rows(section) for option in re.findall(r"^--[a-z-]+", name)}
    assert documented == options_in_help(command)


def test_options_of_every_command_are_documented() -> None:
    documented = {name.split()[0] for name in rows(CLI.split("\n## ")[0]) if name.startswith("--")}
    assert documented - {"--help"} == options_in_help()


# --- events, errors, metrics ---


def test_every_event_type_is_documented() -> None:
    page = (DOCS / "reference/events.md").read_text()
    types_ = page.split("## Types")[1].split("### Effects")[0]
    assert set(rows(types_)) == set(TYPES)


def test_every_error_class_is_documented_with_its_code() -> None:
    said = rows((DOCS / "reference/errors.md").read_text().split("## Phases")[0])
    assert set(said) == {each.value for each in ErrorClass}
    for each, code in CNI_CODES.items():
        assert str(code) in re.findall(r"\d+", said[each.value][0]), each


def test_every_phase_is_documented() -> None:
    said = rows((DOCS / "reference/errors.md").read_text().split("## Phases")[1])
    assert set(said) == {each.value for each in Phase}


def test_every_warning_is_documented_with_its_kubernetes_event() -> None:
    said = rows((DOCS / "reference/events.md").read_text().split("### Warnings")[1])
    assert {kind: reason for kind, (reason, *_) in said.items()} == {
        kind.value: f"`{reason}`" for kind, reason in OF_WARNING.items()
    }
    assert set(OF_WARNING) == set(WarningKind)


def test_every_kind_of_drift_and_leak_is_documented() -> None:
    drift = (DOCS / "explanation/drift.md").read_text() + (DOCS / "explanation/reconciler.md").read_text()
    assert {f"`{kind.value}`" for kind in DriftKind if kind is not DriftKind.UNKNOWN} <= set(
        re.findall("`[a-z_]+`", drift)
    )
    leaks = (DOCS / "explanation/leaks.md").read_text()
    assert {f"`{kind.value}`" for kind in LeakKind if kind is not LeakKind.UNKNOWN} <= set(
        re.findall("`[a-z_]+`", leaks)
    )


def exposed(registry: CollectorRegistry) -> dict[str, Metric]:
    """Return the metrics of *registry* by the name that a query uses."""
    families = registry.collect()
    return {f"{each.name}_total" if each.type == "counter" else each.name: each for each in families}


def worker_metrics() -> CollectorRegistry:
    metrics = WorkerMetrics()
    metrics.watch_cluster([])
    zero = dict.fromkeys(("queue_depth", "in_progress", "oldest_pending", "sandboxes", "ledger_connected"), lambda: 0.0)
    metrics.watch(**zero)
    metrics.watch_hub(connected=lambda: 0.0, lag_events=lambda: 0.0, lag_seconds=lambda: 0.0)
    return metrics.registry


@pytest.mark.parametrize(
    ("heading", "registry"),
    [("Worker", worker_metrics()), ("Reconciler", Metrics().registry)],
    ids=["worker", "reconciler"],
)
def test_every_metric_is_documented_with_its_type(heading: str, registry: CollectorRegistry) -> None:
    page = (DOCS / "reference/metrics.md").read_text()
    said = rows(page.split(f"\n## {heading}\n")[1].split("\n## ")[0])
    real = exposed(registry)
    assert set(said) == set(real)
    assert {name: cells[0] for name, cells in said.items()} == {name: each.type for name, each in real.items()}
