"""Chains for one network of a container, through ``iptables``: only that program knows which kernel filter it uses.

Related changes are one run of ``iptables-restore``, which makes all of them or none. Several interfaces may share a
chain: a rule is identified by what it matches, and a rule that another interface may need stays.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import msgspec

from nodeworker.kernel.layouts import nftsocket
from nodeworker.kernel.nftables import client, expressions
from nodeworker.kernel.nftables.client import Nftables, Rules
from nodeworker.kernel.nftables.expressions import Sought
from nodeworker.kernel.rtnetlink.addresses import Address
from nodeworker.plugins.native.api import NativeError

_RESTORE = {4: "iptables-restore", 6: "ip6tables-restore"}
_LIST = {4: "iptables", 6: "ip6tables"}
_FAMILIES = {4: nftsocket.NFPROTO_IPV4, 6: nftsocket.NFPROTO_IPV6}
_TABLE = "nat"
_POST_ROUTING = "POSTROUTING"
_OLDER_TABLES = {4: "ip_tables_names", 6: "ip6_tables_names"}
"""Files of the older of the kernel's two filters; they list its tables."""
_SOUGHT = re.compile(r"(?<!\S)(! )?-([sd]) ([\da-f.:]+/\d+)(?!\S)")
_LOCK_SECONDS = 5
"""Seconds that the program may wait for its lock."""
_TIMEOUT = 10.0
"""Timeout of the program, in seconds."""


class Rule(msgspec.Struct, frozen=True):
    """A rule. Two rules are the same if they match the same packets."""

    seeks: Sought | None
    """The one network that it matches; None: any or several."""
    words: str


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """A chain of the table ``nat``, and the rules that lead there."""

    name: str
    rules: tuple[Rule, ...] = ()
    """Of the chain, in words without its name."""
    entrances: tuple[Rule, ...] = ()
    """Rules that lead to the chain, in words with the names of their own chains."""


def installed(version: int) -> bool:
    """Return whether the program for IP *version* is installed."""
    return bool(shutil.which(_RESTORE[version]) and shutil.which(_LIST[version]))


def rule(chain: str, seeks: Sought, then: str) -> Rule:
    """Return the rule that does *then* with packets that it *seeks*; its words begin with *chain*, unless empty."""
    side = "-s" if seeks.source else "-d"
    words = (chain, "!" if seeks.elsewhere else "", f"{side} {seeks.network}", then)
    return Rule(seeks if seeks.network.prefixlen else None, " ".join(filter(None, words)))


def ensure(version: int, chain: Chain) -> None:
    """Create *chain* with its entrances; further rules that it has stay. Raises NativeError."""
    if not _restored(version, [f"-N {chain.name}", *_appended(chain.name, chain.rules), *_led(chain.entrances)]):
        return
    # The chain exists: from another interface, or from an interrupted ADD.
    there = present(version, chain.name)
    make = f"-N {chain.name}" if there is None else f"-F {chain.name}"
    rules, entrances = (there.rules, there.entrances) if there is not None else ((), ())
    # Existing rules first: their exceptions must come before the masquerading.
    rules = (*_without(rules, chain.rules), *chain.rules)
    lacking = _without(chain.entrances, entrances)
    if said := _restored(version, [make, *_appended(chain.name, rules), *_led(lacking)]):
        offered = "" if _is_offered(version) else ": this node's kernel has no packet filter: load its modules"
        raise NativeError(f"can't create chain {chain.name}: {said}{offered}")


def remove(version: int, chain: Chain, others: Callable[[], Collection[Address]]) -> None:
    """Delete *chain* and all rules that lead there, except those for addresses of *others*; it may be gone.

    Raises NativeError.
    """
    name, gone = chain.name, [f"-F {chain.name}", f"-X {chain.name}"]
    if chain.entrances and not _restored(version, [*_closed(chain.entrances), *gone]):
        return
    there = present(version, name)
    if there is None:
        return
    kept = others()
    entrances = [each for each in there.entrances if not _is_for(each, kept)]
    if len(entrances) < len(there.entrances):
        needless = (each for each in there.rules if _excepts(each) and not _is_for(each, kept))
        gone = [f"-D {name} {each.words}" for each in needless]
    if said := _restored(version, [*_closed(entrances), *gone]):
        raise NativeError(f"can't delete chain {name}: {said}")


def present(version: int, name: str) -> Chain | None:
    """Return the existing chain *name*, None if there is none. Raises NativeError."""
    lines = _listed(version)
    if f"-N {name}" not in lines:
        return None
    mine, appended = f"-A {name} ", [line for line in lines if line.startswith("-A ")]
    return Chain(
        name=name,
        rules=tuple(_rule(line.removeprefix(mine)) for line in appended if line.startswith(mine)),
        entrances=tuple(_rule(line.removeprefix("-A ")) for line in appended if f" -j {name}" in f"{line} "),
    )


def count_present(version: int, chain: Chain, packet_filter: Rules) -> int:
    """Return how many of the rules of *chain* and of its entrances exist. Raises NativeError, NetlinkError.

    It asks nf_tables directly, and the older filter, if it has the table, through the program.
    """
    mine, shared = (client.Chain(_FAMILIES[version], _TABLE, each) for each in (chain.name, _POST_ROUTING))
    way = expressions.verdict_chain(chain.name)
    leading = [each.expressions for each in packet_filter.rules(shared) if way in each.expressions]
    rules = [expressions.sought(version, each.expressions) for each in packet_filter.rules(mine)]
    entrances = [expressions.sought(version, each) for each in leading]
    if not (rules or entrances) and _TABLE in (_older_tables(version) or ()):
        there = present(version, chain.name) or Chain(name=chain.name)
        rules, entrances = ([each.seeks for each in some] for some in (there.rules, there.entrances))
    return sum(each.seeks in rules for each in chain.rules) + sum(each.seeks in entrances for each in chain.entrances)


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
    code, out, said = _run([_LIST[version], f"--wait={_LOCK_SECONDS}", "-t", _TABLE, "-S"])
    if code and not _has_table(version):
        return []  # without the table, the program can't list it
    if code:
        raise NativeError(f"can't list the chains of iptables: {said}")
    return out.splitlines()


def _has_table(version: int) -> bool:
    """Return whether one of the kernel's filters has the table; True if that is unknown."""
    try:
        with Nftables.on_node() as nft:
            return nft.has_table(_FAMILIES[version], _TABLE) or _TABLE in (_older_tables(version) or ())
    except OSError:
        return True


def _is_offered(version: int) -> bool:
    """Return whether the kernel has one of the filters; True if that is unknown."""
    try:
        with Nftables.on_node() as nft:
            return nft.is_supported() or _older_tables(version) is not None
    except OSError:
        return True


def _older_tables(version: int) -> list[str] | None:
    """Return the tables of the older kernel filter, None if the kernel lacks it. Raises OSError."""
    folder = Path("/proc/thread-self/net")
    try:
        return (folder / _OLDER_TABLES[version]).read_text().split()
    except FileNotFoundError:
        if folder.is_dir():
            return None
        raise


def _rule(words: str) -> Rule:
    """Return the rule that the program lists as *words*."""
    compared = [
        Sought(side == "s", ipaddress.ip_network(network, strict=False), elsewhere=bool(negation))
        for negation, side, network in _SOUGHT.findall(words)
    ]
    return Rule(compared[0] if len(compared) == 1 else None, words)


def _without(rules: Iterable[Rule], others: Collection[Rule]) -> list[Rule]:
    known = {each.seeks for each in others}
    return [each for each in rules if each.seeks not in known]


def _excepts(rule: Rule) -> bool:
    """Return whether *rule* matches packets to one network, not to all others."""
    return rule.seeks is not None and not rule.seeks.elsewhere


def _is_for(rule: Rule, addresses: Iterable[Address]) -> bool:
    """Return whether *rule* matches one of *addresses*."""
    return rule.seeks is not None and any(each.ip in rule.seeks.network for each in addresses)


def _appended(chain: str, rules: Iterable[Rule]) -> Iterable[str]:
    return (f"-A {chain} {each.words}" for each in rules)


def _led(entrances: Iterable[Rule]) -> Iterable[str]:
    return (f"-A {each.words}" for each in entrances)


def _closed(entrances: Iterable[Rule]) -> Iterable[str]:
    return (f"-D {each.words}" for each in entrances)


def _restored(version: int, commands: Sequence[str]) -> str:
    """Run *commands* as one transaction; return its error, or an empty text. Raises NativeError."""
    script = "\n".join((f"*{_TABLE}", *commands, "COMMIT", ""))
    code, _, said = _run([_RESTORE[version], f"--wait={_LOCK_SECONDS}", "--noflush"], script)
    return (said or f"exit code {code}") if code else ""


def _run(words: Sequence[str], script: str = "") -> tuple[int, str, str]:
    """Return exit code, output and the last line of the error output. Raises NativeError."""
    try:
        ran = subprocess.run(
            words,
            input=script,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TIMEOUT,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise NativeError(f"{words[0]} did not end within {_TIMEOUT:g} seconds") from None
    except OSError as error:
        raise NativeError(f"can't run {words[0]}, which ipMasq needs: {error.strerror}: install iptables") from error
    return ran.returncode, ran.stdout, (ran.stderr.strip().splitlines() or [""])[-1]
