"""The map in CONTRIBUTING.md, made from the first line of each folder's and top-level module's docstring.

python -m tests.support.room_map        rewrites the table after a folder or its sentence changed
"""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

from tests.support.repository import REPOSITORY

PAGE = REPOSITORY / "CONTRIBUTING.md"
MAP, LAYERS = "map", "layers"

WAY_OF_AN_ADD = (
    "shim",
    "intake",
    "journal",
    "planning",
    "sandboxes",
    "plugins",
    "kernel",
    "drift",
    "leaks",
    "host",
)
"""The folders of the worker in the order in which an ADD meets them; then those that have no part in one."""

OTHER_FOLDERS = {
    "deploy/crd/": "The kind NetworkAttachmentDefinition.",
    "deploy/kubernetes/": "The DaemonSet, its account, and its overlays.",
    "deploy/demo/": "The demo of `make demo`.",
    "docs/": "Documentation, sorted by need.",
    "tests/unit/": "Tests that need neither root nor a server.",
    "tests/integration/": "Tests with a real kernel, nats-server, API server or plugin.",
    "tests/e2e/": "Tests with whole processes.",
    "tests/support/": "What tests share: nodes, servers, a container runtime, generators.",
}
"""Folders that are no packages, so that no docstring describes them."""


def sentence(module: Path) -> str:
    """Return the first line of the docstring of *module*."""
    docstring = ast.get_docstring(ast.parse(module.read_text()))
    assert docstring, f"{module.relative_to(REPOSITORY)} has no docstring"
    return docstring.splitlines()[0]


def rows() -> list[str]:
    """Return the rows of the table: every package, and the modules beside them in the three roots."""
    found = [
        _row(name, sentence(module)) for root in ("events", "nodeworker", "reconciler") for name, module in _of(root)
    ]
    found += [_row(f"{name}/", sentence(REPOSITORY / name / "__init__.py")) for name in ("migrations", "bench")]
    return [*found, *(_row(name, text) for name, text in OTHER_FOLDERS.items())]


def _row(name: str, text: str) -> str:
    return f"| `{name}` | {text.replace('``', '`').replace('|', chr(92) + '|')} |"


def _of(root: str) -> list[tuple[str, Path]]:
    """Return the packages of *root*, and the modules at its top, by their names in the table."""
    packages = [path for path in (REPOSITORY / root).rglob("__init__.py") if "_generated" not in path.parts]
    modules = [path for path in (REPOSITORY / root).glob("*.py") if path.name != "__init__.py"]
    names = {f"{path.parent.relative_to(REPOSITORY)}/": path for path in packages}
    names |= {str(path.relative_to(REPOSITORY)): path for path in modules}
    return sorted(names.items(), key=_place)


def _place(item: tuple[str, Path]) -> tuple[bool, bool, int, str]:
    name = item[0]
    parts = name.rstrip("/").split("/")
    is_module = name.endswith(".py")
    known = len(parts) > 1 and parts[0] == "nodeworker" and parts[1] in WAY_OF_AN_ADD
    return len(parts) > 1, is_module, WAY_OF_AN_ADD.index(parts[1]) if known else len(WAY_OF_AN_ADD), name


def layers() -> list[str]:
    """Return the rows of the table of layers."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    found: list[str] = []
    for contract in contracts:
        if contract["type"] == "layers":
            order = " > ".join(f"`{layer}`".replace(" | ", "`, `") for layer in contract["layers"])
            found.append(f"| `{', '.join(contract.get('containers', ['the whole']))}` | {order} |")
    return found


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: written by tests/support/room_map.py -->", f"<!-- end of {name} -->"


def written(name: str) -> str:
    """Return what CONTRIBUTING.md has between the marks of the table *name*."""
    begin, end = _marks(name)
    return PAGE.read_text().partition(begin)[2].partition(end)[0].strip()


def generated(name: str) -> str:
    """Return the expected text."""
    head, body = {
        MAP: ("| room | what happens there |", rows()),
        LAYERS: ("| in | layers, high to low |", layers()),
    }[name]
    return "\n".join([head, "|---|---|", *body])


def main() -> int:
    """Rewrite both tables."""
    page = PAGE.read_text()
    for name in (MAP, LAYERS):
        begin, end = _marks(name)
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n\n{generated(name)}\n\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
