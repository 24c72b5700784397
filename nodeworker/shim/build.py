"""Compile the CNI entry point for any node architecture, with the compiler of the Python package ziglang.

A compilation takes minutes, because zig first compiles a C library, so its result is cached for the user.
Standard library only: the wheel's build hook runs it before Plumbline's dependencies are installed.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nodeworker import shim
from nodeworker.shim.build_cache import BuildCache, user_folder

SOURCE = Path(__file__).with_name("plumbline.c")

COMPILER = "ziglang==0.17.1"
"""The compiler as a requirement for pip; ``requirements/compiler.lock`` has its hashes."""

TARGETS = {"amd64": "x86_64-linux-musl", "arm64": "aarch64-linux-musl"}
"""What zig calls each architecture."""

_STRICT = ("-std=c11", "-Wall", "-Wextra", "-Werror")
_REPORT_INTERVAL = 10.0
"""Seconds between two reports of a compilation that goes on."""
_OPEN_FILES = 4096
"""zig keeps one file open for each of the C library's 1400 sources."""


class BuildError(Exception):
    """The entry point was not built. The message says why, and what to do."""


def print_report(sentence: str) -> None:
    """Print *sentence* for the person who waits."""
    print(f"entry point: {sentence}", file=sys.stderr, flush=True)  # noqa: T201


def build(architecture: str, out: Path, report: Callable[[str], None] = print_report) -> None:
    """Write the static, stripped entry point for *architecture* to *out*, from the cache if it was compiled before.

    Raises BuildError.
    """
    cache = BuildCache(user_folder())
    compile_ = functools.partial(_compile, architecture, report)
    wait = functools.partial(report, "waiting for another process of this user that compiles it")
    try:
        _install(cache.obtain(_key(architecture), compile_, wait), out)
    except OSError as error:
        raise BuildError(
            f"the entry point for {architecture} can't be written: {error}; "
            "set XDG_CACHE_HOME to a folder that can be written, if it is the cache"
        ) from error


def requirements(architectures: Sequence[str]) -> list[str]:
    """Return what pip must install before *architectures* can be built: nothing if the cache has them."""
    cache = BuildCache(user_folder())
    return [] if all(cache.find(_key(each)) for each in architectures) else [COMPILER]


def build_sanitized(out: Path) -> None:
    """Write an entry point for this machine to *out* that aborts with a report on undefined behaviour; for tests.

    Raises subprocess.CalledProcessError, or FileNotFoundError without gcc.
    """
    gcc = ["gcc", *_STRICT, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([*gcc, "-o", str(out), str(SOURCE)], check=True)


def _options(architecture: str) -> list[str]:
    return ["-target", TARGETS[architecture], *_STRICT, "-static", "-Os", "-s"]


def _key(architecture: str) -> str:
    """Return the cache's key: the digest of everything that decides what is built."""
    digest = hashlib.sha256("\0".join((COMPILER, *_options(architecture), "")).encode())
    digest.update(SOURCE.read_bytes())
    return f"entry-point-{architecture}-{digest.hexdigest()[:16]}"


def _compile(architecture: str, report: Callable[[str], None], out: Path) -> None:
    _check_limit(architecture)
    _check_compiler(architecture)
    report(f"compiling it for {architecture}, with its C library: one to three minutes, once for this user")
    started = time.monotonic()
    # zig's cache contains the paths of its own files: it is of no use to the next build, whose compiler is elsewhere.
    with tempfile.TemporaryDirectory(prefix="plumbline-zig-") as scratch:
        process = subprocess.Popen(
            [sys.executable, "-m", "ziglang", "cc", *_options(architecture), "-o", str(out), str(SOURCE)],
            env=os.environ | {"ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch},
        )
        with process:
            while _is_running(process):
                report(f"still compiling, for {time.monotonic() - started:.0f} s")
    if process.returncode != 0:
        raise BuildError(
            f"the entry point for {architecture} was not built: zig ended with code {process.returncode}; "
            f"mend what its messages name in {SOURCE}"
        )
    report(f"compiled it for {architecture} in {time.monotonic() - started:.0f} s")


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    """Return whether *process* still runs at the time of the next report."""
    try:
        process.wait(_REPORT_INTERVAL)
    except subprocess.TimeoutExpired:
        return True
    return False


def _check_limit(architecture: str) -> None:
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < _OPEN_FILES:
        raise BuildError(
            f"the entry point for {architecture} was not built: zig opens up to {_OPEN_FILES} files, and the hard "
            f"limit is {limit}; raise it, in a container with --ulimit nofile={_OPEN_FILES}"
        )


def _check_compiler(architecture: str) -> None:
    name, _, version = COMPILER.partition("==")
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        installed = "not installed"
    if installed != version:
        raise BuildError(
            f"the entry point for {architecture} was not built: it needs {COMPILER}, which is {installed}; "
            f"run .ci/setup, or pip install {COMPILER}"
        )


def _install(built: Path, out: Path) -> None:
    # Rename into place: a runtime may be executing the old file, and two builds may run at once.
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        shutil.copyfile(built, draft)
        draft.chmod(0o755)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build from the command line: ``plumbline-<arch>``, beside the source."""
    parser = argparse.ArgumentParser(prog="python -m nodeworker.shim.build", description=__doc__)
    parser.add_argument(
        "--arch", nargs="+", choices=TARGETS, default=[shim.architecture()], help="default: this machine's"
    )
    parser.add_argument(
        "--requirements", action="store_true", help="build nothing; print what pip must install before that"
    )
    options = parser.parse_args(arguments)
    if options.requirements:
        print(*requirements(options.arch))  # noqa: T201
        return
    for architecture in options.arch:
        try:
            build(architecture, shim.path(architecture))
        except BuildError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
