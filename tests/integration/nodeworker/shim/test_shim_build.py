"""The shipped files: one static binary for each architecture, in a wheel for that architecture."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nodeworker import shim
from nodeworker.shim import build

ROOT = Path(shim.__file__).parents[2]
ELF_MACHINE = {"amd64": 62, "arm64": 183}
PT_INTERP = 3

needs_zig = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
needs_hatchling = pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed")


@needs_zig
@pytest.mark.timeout(600)  # the first time, zig makes a C library for the architecture
@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_every_architecture_builds_static_and_small(tmp_path: Path, architecture: str):
    out = tmp_path / "plumbline"
    build.main(["--arch", architecture, "--out", str(out)])
    elf = out.read_bytes()
    assert elf[:5] == b"\x7fELF\x02"
    assert int.from_bytes(elf[18:20], "little") == ELF_MACHINE[architecture]
    start, size, count = (int.from_bytes(elf[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
    types = [int.from_bytes(elf[at : at + 4], "little") for at in range(start, start + size * count, size)]
    assert PT_INTERP not in types
    assert len(elf) < 128 << 10
    assert os.access(out, os.X_OK)
    assert [file.name for file in tmp_path.iterdir()] == ["plumbline"]


def test_a_missing_binary_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shim, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match=r"python -m nodeworker\.shim\.build"):
        shim.binary()
    built = tmp_path / f"plumbline-{shim.architecture()}"
    built.touch()
    assert shim.binary() == built


def test_build_hook_needs_the_standard_library_only():
    """An isolated build has no package of ours: ``-S`` leaves the installed ones out."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import nodeworker.shim.build"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


@needs_zig
@needs_hatchling
@pytest.mark.timeout(600)  # the first run of the cross compiler builds a C library
def test_wheel_has_the_binary_and_a_platform_tag(tmp_path: Path):
    tree = tmp_path / "tree"
    for package in ("events", "nodeworker"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("plumbline-*", "__pycache__"))
    for package in ("reconciler", "migrations"):
        (tree / package).mkdir()
        (tree / package / "__init__.py").touch()
    shutil.copy(ROOT / "pyproject.toml", tree)
    (tree / "README.md").touch()
    (tree / ".gitignore").write_text("nodeworker/shim/plumbline-*\n")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=tree, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
    with zipfile.ZipFile(wheel) as archive:
        member = archive.getinfo(f"nodeworker/shim/plumbline-{shim.architecture()}")
        assert member.external_attr >> 16 & 0o111
        assert archive.read(member)[:4] == b"\x7fELF"
