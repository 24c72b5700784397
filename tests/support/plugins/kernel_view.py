"""The kernel's state and the result of an attachment, with random values made comparable.

Two indistinguishable attachments have equal views. For tests that compare a native plugin with the
reference's binary, or a repeated request with an undisturbed one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from events.schema import Phase
from nodeworker.kernel.namespaces import Namespace

REFERENCE = Path("/usr/lib/cni")

_CLONE_NEWNET = 0x40000000
_MAC = re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b")
_VETH = re.compile(r"\bveth[0-9a-f]{8}\b")
_FIXED_MACS = {"00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"}
_PASSING = re.compile(
    r"ifindex|link_index|operstate|.*_timer|topology_change.*|bridge_id|root_id|designated_.*|nodad|handle"
)
"""Keys of what passes, of numbers that mean nothing, and of the one difference that is on purpose: IPv6 addresses of
native interfaces are usable at once."""
_LATE = {"NO-CARRIER", "linkdown"}
"""Flags that the kernel derives from ``LOWER_UP``, up to a second later, as it does ``operstate``."""
_IPV6_PATIENCE = 2.0
"""Seconds: as for ``_LATE``, and some links get none at all."""
_PAUSE = 0.02
_PARAMETER_BYTES = 4096
_UNREADABLE = {"stable_secret"}

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def node() -> Iterator[None]:
    """Move the calling thread to its own node: a network namespace with only ``lo``."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        assert _libc.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        _hasten()
        yield
    finally:
        assert _libc.setns(home, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(home)


@contextlib.contextmanager
def container() -> Iterator[str]:
    """Make a container's network namespace and yield its path."""
    name = f"plumbline-test-{os.urandom(4).hex()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        path = f"/run/netns/{name}"
        with Namespace(path, Phase.ADD) as opened:
            opened.run_inside(_hasten)
        yield path
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@functools.cache
def filters_vlans() -> bool:
    """Return whether the kernel's bridges know VLANs; only root can find out."""
    with node():
        words = ["ip", "link", "add", "x", "type", "bridge", "vlan_filtering", "1"]
        return subprocess.run(words, check=False, capture_output=True).returncode == 0


def configure(*commands: str, netns: str = "") -> None:
    """Run each of *commands* of ``ip`` in one execution, on the thread's node or in *netns*."""
    options = ["-n", netns.rpartition("/")[2]] if netns else []
    subprocess.run(["ip", *options, "-batch", "-"], input="\n".join(commands), text=True, check=True)


def view(netns: str, result: Any = None) -> dict[str, Any]:
    """Return the view of the thread's node, of the container in *netns* and of *result*, once IPv6 is settled."""
    with Namespace(netns, Phase.CHECK) as opened:
        until = time.monotonic() + _IPV6_PATIENCE
        while True:
            begins, tentative = (any(each) for each in zip(opened.run_inside(_unsettled), _unsettled(), strict=True))
            if not tentative and not (begins and time.monotonic() < until):
                break
            time.sleep(_PAUSE)
        seen = {"result": result, "container": opened.run_inside(_namespace), "node": _namespace()}
    text = json.dumps(_lasting(seen), sort_keys=True).replace(netns, "<netns>")
    return _sorted(json.loads(_without_chance(text)))


def differences(mine: Any, theirs: Any, place: str = "") -> list[str]:
    """Return one line for each difference of two views."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = sorted(mine.keys() | theirs.keys())
        return [line for key in keys for line in differences(mine.get(key), theirs.get(key), f"{place}/{key}")]
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        pairs = enumerate(zip(mine, theirs, strict=True))
        return [line for number, (one, other) in pairs for line in differences(one, other, f"{place}/{number}")]
    return [] if mine == theirs else [f"{place}: {mine} instead of {theirs}"]


def execute(plugin: str, command: str, config: dict[str, Any], netns: str, ifname: str, **env: str) -> Any:
    """Execute the reference plugin on the thread's node; return what it prints."""
    ran = executed(plugin, command, config, netns, ifname, **env)
    assert ran.returncode == 0, ran.stdout
    return json.loads(ran.stdout) if ran.stdout else None


def executed(
    plugin: str, command: str, config: dict[str, Any], netns: str, ifname: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Execute the reference plugin on the thread's node; return how it ended."""
    return subprocess.run(
        [REFERENCE / plugin],
        input=json.dumps(config),
        capture_output=True,
        text=True,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "sandbox",
            "CNI_NETNS": netns,
            "CNI_IFNAME": ifname,
            "CNI_PATH": str(REFERENCE),
            **env,
        },
    )


def _hasten() -> None:
    """Disable duplicate address detection, which the reference plugins wait for."""
    for name, value in (("dad_transmits", "0"), ("router_solicitation_delay", "0")):
        Path("/proc/sys/net/ipv6/conf/default", name).write_text(value)


def _ip(*commands: str, options: tuple[str, ...] = ()) -> list[Any]:
    """Return what ``ip`` shows for each of *commands*, in one execution."""
    words = ["ip", *options, "-j", "-d", "-batch", "-"]
    ran = subprocess.run(words, check=True, capture_output=True, text=True, input="\n".join(commands))
    shown = [json.loads(line) for line in ran.stdout.splitlines() if line.strip()]
    assert len(shown) == len(commands), ran.stdout
    return shown


def _unsettled() -> tuple[bool, bool]:
    """Return whether some link still waits for IPv6, and whether some address is tentative."""
    (links,) = _ip("addr")
    return _ipv6_begins(links), any("tentative" in each for link in links for each in link["addr_info"])


def _ipv6_begins(links: list[Any]) -> bool:
    """Return whether a link that is up has no link-local address yet."""
    for link in links:
        conf = Path("/proc/sys/net/ipv6/conf", link["ifname"])
        wanted = {"UP", "LOWER_UP"} <= set(link["flags"]) and "LOOPBACK" not in link["flags"]
        if not wanted or not conf.exists() or any(each["scope"] == "link" for each in link["addr_info"]):
            continue
        if [(conf / name).read_text().strip() for name in ("disable_ipv6", "addr_gen_mode")] == ["0", "0"]:
            return True
    return False


def _namespace() -> dict[str, Any]:
    vlans = subprocess.run(["bridge", "-j", "vlan"], check=True, capture_output=True, text=True)
    links, neighbours, routes, rules = _ip("addr", "neigh", "route show table all", "rule")
    (rules6,) = _ip("rule", options=("-6",))
    return {
        "links": [_without_link_local(link) for link in links],
        "routes": [route for route in routes if not str(route["dst"]).startswith("fe80:")],
        "rules": rules + rules6,
        "neighbours": [each for each in neighbours if "PERMANENT" in each["state"]],
        "vlans": json.loads(vlans.stdout or "[]"),
        "parameters": _parameters(),
        "filters": _filters(),
    }


def _without_link_local(link: dict[str, Any]) -> dict[str, Any]:
    """Return *link* without link-local IPv6 addresses, which appear at any time after the link is up.

    Whether it makes them is in the link's ``inet6_addr_gen_mode`` and in the parameters.
    """
    addresses = [each for each in link.get("addr_info", []) if (each["family"], each["scope"]) != ("inet6", "link")]
    return link | {"addr_info": addresses}


def _filters() -> list[Any]:
    """Return the packet filter's rules as ``nft`` and ``iptables`` show them."""
    if not shutil.which("nft"):
        return []
    shown = subprocess.run(["nft", "-j", "list", "ruleset"], check=True, capture_output=True, text=True)
    rules = [each for each in json.loads(shown.stdout)["nftables"] if "metainfo" not in each]
    if not rules and _iptables_uses_nftables():
        return []
    for save in ("iptables-save", "ip6tables-save"):
        ran = subprocess.run([save, "-t", "nat"], check=True, capture_output=True, text=True)
        rules += [re.sub(r"\[\d+:\d+\]", "", line) for line in ran.stdout.splitlines() if not line.startswith("#")]
    return rules


@functools.cache
def _iptables_uses_nftables() -> bool:
    """Return whether ``nft`` shows the rules of ``iptables``, too."""
    ran = subprocess.run(["iptables-save", "--version"], check=True, capture_output=True, text=True)
    return "nf_tables" in ran.stdout


def _parameters() -> dict[str, str]:
    seen = {"ipv4/ip_forward": _read("/proc/sys/net/ipv4/ip_forward")}
    for family in ("ipv4/conf", "ipv6/conf"):
        for link in sorted(os.listdir(f"/proc/sys/net/{family}")):
            folder = f"/proc/sys/net/{family}/{link}"
            # The kernel removes the veths of a removed container, and their files, after the command has returned.
            with contextlib.suppress(FileNotFoundError):
                for name in sorted(os.listdir(folder)):
                    if name not in _UNREADABLE:
                        seen[f"{family}/{link}/{name}"] = _read(f"{folder}/{name}")
    return seen


def _read(path: str) -> str:
    """Return the short text at *path*. A view has hundreds: pathlib would cost four times as much."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, _PARAMETER_BYTES).decode().strip()
    finally:
        os.close(descriptor)


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(each) for key, each in value.items() if not _PASSING.fullmatch(key)}
    if isinstance(value, list):
        return [_lasting(each) for each in value if not (isinstance(each, str) and each in _LATE)]
    return value


def _sorted(seen: dict[str, Any]) -> dict[str, Any]:
    """Sort the routes after their random values are replaced."""
    for side in ("container", "node"):
        seen[side]["routes"].sort(key=json.dumps)
    return seen


def _without_chance(text: str) -> str:
    """Number MAC addresses and the names of veth interfaces in the order in which they appear."""
    names: dict[str, str] = {}

    def numbered(match: re.Match[str]) -> str:
        word = match.group()
        kind = "veth" if word.startswith("veth") else "mac"
        return word if word in _FIXED_MACS else names.setdefault(word, f"<{kind} {len(names)}>")

    return _VETH.sub(numbered, _MAC.sub(numbered, text))
