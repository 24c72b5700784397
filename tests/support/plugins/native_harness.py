"""Checks for every native plugin: it equals the reference, survives a cut at any message, and a DEL at any time."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from nodeworker.kernel.codec import Values
from nodeworker.kernel.rtnetlink import links, message
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.jobs import without_new_mtus
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.results import Result
from tests.integration.nodeworker.plugins.native.test_cut_short import Cut, cut_after
from tests.support.plugins.kernel_view import configure, container, differences, execute, node, view

MODULES = {"bond": "bonding", "vlan": "8021q"}


@functools.cache
def kernel_has(kind: str) -> bool:
    """Return whether the kernel knows interfaces of *kind*; only root can find out."""
    if os.geteuid() != 0:
        return False
    with node():
        ran = subprocess.run(["ip", "link", "add", "x", "type", kind], check=False, capture_output=True, text=True)
    return "Unknown device type" not in ran.stderr


def needs(kind: str) -> pytest.MarkDecorator:
    module = MODULES.get(kind, kind)
    return pytest.mark.skipif(not kernel_has(kind), reason=f"the kernel has no {module}")


def ip(words: str, netns: str = "") -> None:
    subprocess.run(["ip", *(["-n", netns.rpartition("/")[2]] if netns else []), *words.split()], check=True)


def shown(words: str, netns: str = "") -> Any:
    """Return what ``ip -j -d`` shows."""
    words = f"-n {netns.rpartition('/')[2]} -j -d {words}" if netns else f"-j -d {words}"
    return json.loads(subprocess.run(["ip", *words.split()], check=True, capture_output=True).stdout or "[]")


def names(netns: str = "") -> set[str]:
    return {each["ifname"] for each in shown("link", netns)}


def answer(*addresses: str, gateways: tuple[str, ...] = (), **more: Any) -> Result:
    """Return what an IPAM plugin that assigns *addresses* answers."""
    ips = [{"address": each} for each in addresses]
    for each, gateway in zip(ips, gateways, strict=False):
        each["gateway"] = gateway
    return results.decode(json.dumps({"cniVersion": "1.0.0", "ips": ips} | more), "1.0.0")


BOTH = answer(
    "10.77.0.5/24",
    "fd77::5/64",
    gateways=("10.77.0.1", "fd77::1"),
    routes=[{"dst": "10.88.0.0/16"}, {"dst": "fd88::/64"}, {"dst": "0.0.0.0/0"}],
)


def call(config: dict[str, Any], netns: str, **more: Any) -> Call:
    config = {"cniVersion": "1.0.0", "name": "net"} | config
    return Call(**({"container_id": "sandbox", "netns": netns, "ifname": "net1", "config": config} | more))


def card(name: str = "par0") -> None:
    """Add a network card, one end of a veth pair, to the node."""
    configure(f"link add {name} mtu 1450 type veth peer name w{name}", f"link set {name} up", f"link set w{name} up")


def encoded(result: Result) -> dict[str, Any]:
    """Return *result* as a plugin prints it that is first in its chain."""
    return json.loads(results.encode(without_new_mtus(result, None), "1.0.0"))


def outcome(plugin: Any, config: dict[str, Any], ipam: dict[str, Any], furnish: Callable[[], None]) -> list[Any]:
    """Return the views after ADD and after DEL; *ipam* is the configuration of the static IPAM plugin."""
    config = {"cniVersion": "1.0.0", "name": "net"} | config
    assigned = (
        results.decode(json.dumps({"cniVersion": "1.0.0", "ips": ipam["addresses"]} | ipam), "1.0.0") if ipam else None
    )
    assert plugin.unsupported(config | ({"ipam": {"type": "static"}} if ipam else {})) == ""
    with node(), container() as netns:
        furnish()
        result = plugin.add(call(config, netns), assigned)
        attached = view(netns, {"dns": {}} | encoded(result))
        plugin.delete(call(config, netns))
        return [attached, view(netns)]


def reference_outcome(config: dict[str, Any], ipam: dict[str, Any], furnish: Callable[[], None]) -> list[Any]:
    """Return the views of ``outcome`` with the reference's binary."""
    config = {"cniVersion": "1.0.0", "name": "net"} | config | ({"ipam": {"type": "static"} | ipam} if ipam else {})
    with node(), container() as netns:
        furnish()
        result = execute(config["type"], "ADD", config, netns, "net1")
        attached = view(netns, result)
        execute(config["type"], "DEL", config, netns, "net1")
        return [attached, view(netns)]


def cut_everywhere(
    plugin: Any, config: dict[str, Any], ipam: Result | None, furnish: Callable[[str], None], **more: Any
) -> None:
    """Cut an ADD, and a DEL, after each message to the kernel and repeat it."""
    undisturbed: list[Any] = []
    cuts, whole = 0, [False, False]
    while not all(whole):
        with node(), container() as netns:
            furnish(netns)
            asked = call(config, netns, **more)
            if undisturbed:
                whole[0] = not _is_cut(lambda: plugin.add(asked, ipam), cuts)  # noqa: B023 - called at once
            attached = view(netns, encoded(plugin.add(asked, ipam)))
            if undisturbed:
                whole[1] = not _is_cut(lambda: plugin.delete(asked), cuts)  # noqa: B023
                cuts += 1
            plugin.delete(asked)
            seen = [attached, view(netns)]
            undisturbed = undisturbed or seen
            assert differences(seen, undisturbed) == [], f"after {cuts - 1} requests"
    assert cuts > 1


def _is_cut(work: Callable[[], Any], sent: int) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        cut_after(sent, patch)
        try:
            work()
        except Cut:
            return True
    return False


def late(plugin: Any, config: dict[str, Any], ipam: Result | None, furnish: Callable[[str], None], **more: Any) -> None:
    """DEL succeeds before an ADD, twice after it, and without the namespace; ADD then fails."""
    with node():
        with container() as netns:
            furnish(netns)
            asked = call(config, netns, **more)
            before = view(netns)
            plugin.delete(asked)
            plugin.add(asked, ipam)
            plugin.delete(asked)
            assert names(netns) == {each["ifname"] for each in before["container"]["links"]}
            detached = view(netns)
            plugin.delete(asked)
            assert differences(view(netns), detached) == []
        plugin.delete(asked)
        plugin.delete(call(config, "", **more))
        with pytest.raises(NativeError, match="can't be used as a network namespace") as caught:
            plugin.add(asked, ipam)
        assert caught.value.code == 4


def is_refused(plugin: Any, asked: Call, ipam: Result | None, words: str, code: int = 999) -> None:
    """ADD fails with *code*, which is the reference's by default, and the text *words*, and DEL then succeeds."""
    with pytest.raises(NativeError, match=words) as caught:
        plugin.add(asked, ipam)
    assert caught.value.code == code
    plugin.delete(asked)


def works_or_names_its_module(plugin: Any, kind: str, asked: Call, ipam: Result | None) -> None:
    """Without *kind* in the kernel, ADD fails with the reference's code and names the module."""
    if kernel_has(kind):
        assert plugin.add(asked, ipam).interfaces[0].name == "net1"
        return
    is_refused(plugin, asked, ipam, rf"kernel does not support {kind} .*: load its module {MODULES.get(kind, kind)}$")


def data_of(kind: str, data: Values) -> Any:
    """Return pyroute2's reading of the request for an interface of *kind* with *data*."""
    decoded: Any = ifinfmsg(message.packed(links.create("net1", kind, data=data), 1))
    decoded.decode()
    assert decoded.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == kind
    return decoded.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
