"""Chains of ``iptables`` for one attachment, by that program: it alone knows which kernel filter it means.

What belongs together is one run of ``iptables-restore``, which does all of it or nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from nodeworker.interfaces.native import NativeError
from nodeworker.netlink import expressions, nftables
from nodeworker.netlink.nftables import Nftables, Rules

_RESTORE = {4: "iptables-restore", 6: "ip6tables-restore"}
_LIST = {4: "iptables", 6: "ip6tables"}
_FAMILIES = {4: nftables.IPV4, 6: nftables.IPV6}
_TABLE = "nat"
_POST_ROUTING = "POSTROUTING"
_OLDER_TABLES = {4: "ip_tables_names", 6: "ip6_tables_names"}
"""Files in which the older of the kernel's two filters names its tables, and which are there with it."""
_LOCK_PATIENCE = 5
"""Seconds that the program may wait for others of its kind."""
_PATIENCE = 10.0
"""Seconds that it may take."""


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """A chain of the table ``nat``, and the rules that lead there."""

    name: str
    rules: tuple[str, ...] = ()
    """Of the chain, without its name."""
    entrances: tuple[str, ...] = ()
    """Rules that lead to the chain, with the names of theirs."""


def installed(version: int) -> bool:
    """Return whether the program for IP *version* is there."""
    return bool(shutil.which(_RESTORE[version]) and shutil.which(_LIST[version]))


def ensure(version: int, chain: Chain) -> None:
    """Make *chain* with its entrances, in the place of what there is of it. Raises NativeError."""
    new = [*(f"-A {chain.name} {rule}" for rule in chain.rules), *(f"-A {rule}" for rule in chain.entrances)]
    if not _restored(version, [f"-N {chain.name}", *new]):
        return
    # What an ADD has left that was cut.
    there = present(version, chain.name)
    make = f"-N {chain.name}" if there is None else f"-F {chain.name}"
    if said := _restored(version, [make, *_closed(there), *new]):
        lacking = "" if _is_offered(version) else ": this node's kernel offers no packet filter: load its modules"
        raise NativeError(f"can not make chain {chain.name}: {said}{lacking}")


def remove(version: int, name: str, entrances: Sequence[str]) -> None:
    """Take the chain *name* away, with all that leads there, most likely *entrances*; it may be gone.

    Raises NativeError.
    """
    gone = [f"-F {name}", f"-X {name}"]
    if entrances and not _restored(version, [*(f"-D {rule}" for rule in entrances), *gone]):
        return
    there = present(version, name)
    if there is not None and (said := _restored(version, [*_closed(there), *gone])):
        raise NativeError(f"can not take chain {name} away: {said}")


def present(version: int, name: str) -> Chain | None:
    """Return the chain *name* as it is, None if there is none. Raises NativeError."""
    lines = _listed(version)
    if f"-N {name}" not in lines:
        return None
    mine, appended = f"-A {name} ", [line for line in lines if line.startswith("-A ")]
    return Chain(
        name=name,
        rules=tuple(line.removeprefix(mine) for line in appended if line.startswith(mine)),
        entrances=tuple(line.removeprefix("-A ") for line in appended if f" -j {name}" in f"{line} "),
    )


def counted(version: int, name: str, packet_filter: Rules) -> tuple[int, int]:
    """Return how many rules the chain *name* has, and how many lead there. Raises NativeError, NetlinkError.

    The newer of the kernel's filters is asked itself; the older one only by the program, where it has the table.
    """
    mine, everybodys = (nftables.Chain(_FAMILIES[version], _TABLE, each) for each in (name, _POST_ROUTING))
    way = expressions.way_to(name)
    entrances = sum(way in each.expressions for each in packet_filter.rules(everybodys))
    rules = len(packet_filter.rules(mine))
    if not (rules or entrances) and _TABLE in (_older_tables(version) or ()):
        there = present(version, name)
        return (len(there.rules), len(there.entrances)) if there is not None else (0, 0)
    return rules, entrances


def identified(version: int, prefix: str) -> dict[str, str]:
    """Return the chains whose names begin with *prefix*, each with the ``id`` in the comment of one of its rules.

    Raises NativeError.
    """
    commented = re.compile(rf'-A ({re.escape(prefix)}\S+) .*--comment .*\bid: \\?"([^"\\]+)\\?"')
    return {found[1]: found[2] for line in _listed(version) if (found := commented.match(line))}


def quoted(text: str) -> str:
    """Return *text* as one word of a rule."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _listed(version: int) -> list[str]:
    code, out, said = _run([_LIST[version], f"--wait={_LOCK_PATIENCE}", "-t", _TABLE, "-S"])
    if code and not _has_table(version):
        return []  # the kernel has not what it takes to list it either
    if code:
        raise NativeError(f"can not list the chains of iptables: {said}")
    return out.splitlines()


def _has_table(version: int) -> bool:
    """Return whether one of the kernel's filters has the table, or that can't be told."""
    try:
        with Nftables.on_node() as nft:
            return nft.has_table(_FAMILIES[version], _TABLE) or _TABLE in (_older_tables(version) or ())
    except OSError:
        return True


def _is_offered(version: int) -> bool:
    """Return whether the kernel has one of the filters, or that can't be told."""
    try:
        with Nftables.on_node() as nft:
            return nft.offered() or _older_tables(version) is not None
    except OSError:
        return True


def _older_tables(version: int) -> list[str] | None:
    """Return the tables of the older of the kernel's filters, None if it is not there. Raises OSError."""
    folder = Path("/proc/thread-self/net")
    try:
        return (folder / _OLDER_TABLES[version]).read_text().split()
    except FileNotFoundError:
        if folder.is_dir():
            return None
        raise


def _closed(there: Chain | None) -> Iterable[str]:
    return (f"-D {rule}" for rule in (there.entrances if there else ()))


def _restored(version: int, commands: Sequence[str]) -> str:
    """Carry out *commands* together; return why that was not possible, or an empty text. Raises NativeError."""
    script = "\n".join((f"*{_TABLE}", *commands, "COMMIT", ""))
    code, _, said = _run([_RESTORE[version], f"--wait={_LOCK_PATIENCE}", "--noflush"], script)
    return (said or f"exit code {code}") if code else ""


def _run(words: Sequence[str], script: str = "") -> tuple[int, str, str]:
    """Return exit code, output, and the last line of what was said of it. Raises NativeError."""
    try:
        ran = subprocess.run(
            words,
            input=script,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_PATIENCE,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise NativeError(f"{words[0]} was still not done after {_PATIENCE:g} seconds") from None
    except OSError as error:
        raise NativeError(f"can not run {words[0]}, which ipMasq needs: {error.strerror}: install iptables") from error
    return ran.returncode, ran.stdout, (ran.stderr.strip().splitlines() or [""])[-1]
