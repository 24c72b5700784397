"""The shipped files: one static binary for each architecture, compiled once, in a wheel that needs no compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from nodeworker import shim
from nodeworker.shim import build
from tests.support.repository import REPOSITORY

ELF_MACHINE = {"amd64": 62, "arm64": 183}
MACHINES = {name: machine for machine, name in shim.ARCHITECTURES.items()}
PT_INTERP = 3


def machine_of(elf: bytes) -> int:
    """Return the machine of an executable's header."""
    assert elf[:5] == b"\x7fELF\x02"
    return int.from_bytes(elf[18:20], "little")


@pytest.mark.parametrize("architecture", build.TARGETS)
def test_every_architecture_builds_static_and_small(tmp_path: Path, architecture: str):
    out = tmp_path / "plumbline"
    build.build(architecture, out)
    elf = out.read_bytes()
    assert machine_of(elf) == ELF_MACHINE[architecture]
    start, size, count = (int.from_bytes(elf[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
    types = [int.from_bytes(elf[at : at + 4], "little") for at in range(start, start + size * count, size)]
    assert PT_INTERP not in types
    assert len(elf) < 128 << 10
    assert os.access(out, os.X_OK)
    assert [file.name for file in tmp_path.iterdir()] == ["plumbline"]


def test_what_was_built_needs_no_compiler_until_its_source_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    built = [shim.architecture()]
    assert build.requirements(built) == []
    changed = tmp_path / "plumbline.c"
    changed.write_bytes(build.SOURCE.read_bytes() + b"\n")
    with monkeypatch.context() as patch:
        patch.setattr(build, "SOURCE", changed)
        assert build.requirements(built) == [build.COMPILER]
    with monkeypatch.context() as patch:
        patch.setattr(build, "COMPILER", "ziglang==0.0.0")
        assert build.requirements(built) == ["ziglang==0.0.0"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.requirements(built) == [build.COMPILER]


def test_a_build_without_the_compiler_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "COMPILER", "ziglang==0.0.0")
    with pytest.raises(build.BuildError, match=r"needs ziglang==0\.0\.0, which is .*; run \.ci/setup"):
        build.build(shim.architecture(), tmp_path / "plumbline")
    assert not list(tmp_path.iterdir())


def test_a_limit_on_open_files_that_is_too_low_is_named(tmp_path: Path):
    """podman's builds have this limit, at which zig fails after minutes with hundreds of messages."""
    tried = subprocess.run(
        ["prlimit", "--nofile=1024:1024", sys.executable, "-m", "nodeworker.shim.build"],
        cwd=REPOSITORY,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert tried.returncode == 1
    assert re.fullmatch(r"the entry point .* the hard limit is 1024; raise it, .*\n", tried.stderr)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "plumbline").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(build.BuildError, match=rf"{tmp_path}/plumbline.*set XDG_CACHE_HOME"):
        build.build(shim.architecture(), tmp_path / "out")


def test_a_missing_binary_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shim, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match=r"python -m nodeworker\.shim\.build"):
        shim.binary()
    built = tmp_path / f"plumbline-{shim.architecture()}"
    built.touch()
    assert shim.binary() == built


def test_build_hook_needs_the_standard_library_only():
    """An isolated build has no package of ours: ``-S`` leaves the installed ones out."""
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import nodeworker.shim.build"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def test_the_compiler_is_the_locked_one():
    groups = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["dependency-groups"]
    assert groups["compiler"] == [build.COMPILER]
    assert (REPOSITORY / "requirements/compiler.lock").read_text().startswith(f"{build.COMPILER} ")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout without a built entry point."""
    tree = tmp_path_factory.mktemp("checkout")
    for package in ("events", "nodeworker"):
        shutil.copytree(
            REPOSITORY / package, tree / package, ignore=shutil.ignore_patterns("plumbline-*", "__pycache__")
        )
    for package in ("reconciler", "migrations"):
        (tree / package).mkdir()
        (tree / package / "__init__.py").touch()
    shutil.copy(REPOSITORY / "pyproject.toml", tree)
    (tree / "README.md").touch()
    (tree / ".gitignore").write_text("nodeworker/shim/plumbline-*\n")
    return tree


def build_wheel(tree: Path, out: Path, environment: dict[str, str]) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=tree,
        env={**os.environ, **environment},
        check=True,
    )
    (wheel,) = out.glob("*.whl")
    return wheel


def test_a_releases_wheel_has_both_binaries_and_compiles_nothing(tree: Path, tmp_path: Path):
    wheel = build_wheel(tree, tmp_path, {"PLUMBLINE_WHEEL_ARCHITECTURES": "amd64 arm64"})
    assert all(machine in wheel.name for machine in MACHINES.values())
    with zipfile.ZipFile(wheel) as archive:
        for architecture, machine in ELF_MACHINE.items():
            member = archive.getinfo(f"nodeworker/shim/plumbline-{architecture}")
            assert member.external_attr >> 16 & 0o111
            assert machine_of(archive.read(member)) == machine
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "--isolated", "install", "--quiet", "--no-index", "--no-deps"]
    nothing = {"PATH": "/var/empty", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([*pip, "--target", str(installed), str(wheel)], env=nothing, check=True)
    answer = subprocess.run(
        [installed / f"nodeworker/shim/plumbline-{shim.architecture()}"],
        env={"CNI_COMMAND": "VERSION"},
        input=b'{"cniVersion":"1.0.0"}',
        stdout=subprocess.PIPE,
        check=True,
    )
    assert b"supportedVersions" in answer.stdout
    assert not (tmp_path / "cache/plumbline").exists()


def test_a_wheel_from_source_has_the_binary_of_this_machine_only(tree: Path, tmp_path: Path):
    here = shim.architecture()
    wheel = build_wheel(tree, tmp_path, {"PLUMBLINE_WHEEL_ARCHITECTURES": ""})
    assert [name for name, machine in MACHINES.items() if machine in wheel.name] == [here]
    with zipfile.ZipFile(wheel) as archive:
        binaries = [name for name in archive.namelist() if name.startswith("nodeworker/shim/plumbline-")]
    assert binaries == [f"nodeworker/shim/plumbline-{here}"]


def test_a_build_from_source_fetches_the_compiler_only_to_compile(tree: Path, tmp_path: Path):
    code = "import hatchling.build as build; print(*build.get_requires_for_build_wheel())"
    for environment, required in (({}, ""), ({"XDG_CACHE_HOME": str(tmp_path)}, build.COMPILER)):
        asked = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tree,
            env={**os.environ, **environment},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert asked.stdout.strip() == required
