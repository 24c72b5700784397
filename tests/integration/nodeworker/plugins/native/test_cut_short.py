"""An ADD can be cut after any message to the kernel and repeated, and ends as if nothing had been; so can a DEL."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from nodeworker.kernel.rtnetlink.message import Request
from nodeworker.kernel.rtnetlink.socket import Netlink
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.filter import iptables
from nodeworker.plugins.native.kinds import loopback, macvlan, ptp
from nodeworker.plugins.native.kinds.bridge import bridge
from nodeworker.plugins.spec import results
from tests.support.plugins.kernel_view import configure, container, differences, node, view

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

PLUGINS: dict[str, Any] = {"bridge": bridge, "loopback": loopback, "macvlan": macvlan, "ptp": ptp}

IPAM = results.decode(
    json.dumps(
        {
            "cniVersion": "1.0.0",
            "ips": [
                {"address": "10.77.0.5/24", "gateway": "10.77.0.1"},
                {"address": "fd77::5/64", "gateway": "fd77::1"},
            ],
            "routes": [{"dst": "10.88.0.0/16"}, {"dst": "fd88::/64"}, {"dst": "0.0.0.0/0"}],
        }
    ),
    "1.0.0",
)

CASES: dict[str, tuple[dict[str, Any], results.Result | None]] = {
    "loopback": ({"type": "loopback"}, None),
    "bridge": ({"type": "bridge", "bridge": "br0", "promiscMode": True}, IPAM),
    "bridge without addresses": ({"type": "bridge", "bridge": "br0", "portIsolation": True}, None),
    "gateway": ({"type": "bridge", "bridge": "brx", "isDefaultGateway": True, "hairpinMode": True}, IPAM),
    "gateway by force": ({"type": "bridge", "bridge": "brx", "isGateway": True, "forceAddress": True}, IPAM),
    "macvlan": ({"type": "macvlan", "master": "par0", "mac": "02:00:5e:10:00:02", "mtu": 1400}, IPAM),
    "macvlan without addresses": ({"type": "macvlan", "master": "par0"}, None),
    "ptp": ({"type": "ptp"}, IPAM),
    "masquerading": ({"type": "ptp", "ipMasq": True, "ipam": {"type": "static"}}, IPAM),
    "masquerading by nftables": (
        {"type": "ptp", "ipMasq": True, "ipMasqBackend": "nftables", "ipam": {"type": "static"}},
        IPAM,
    ),
    "confined to its address": ({"type": "bridge", "bridge": "brx", "macspoofchk": True}, None),
}


class Cut(BaseException):
    """Raised in place of a kill during an ADD."""


def furnish(config: dict[str, Any]) -> None:
    """Give the node a card, and a bridge with a port of the lowest MAC address."""
    address = ["addr add 10.99.0.1/24 dev brx"] if config.get("forceAddress") else []
    configure(
        "link add par0 type veth peer name par1",
        "link set par0 up",
        "link set par1 up",
        "link add brx type bridge",
        "link add prt0 address 02:00:00:00:00:01 type veth peer name prt1",
        "link set prt0 master brx up",
        "link set prt1 up",
        *address,
    )


def cut_after(sent: int, patch: pytest.MonkeyPatch) -> None:
    """Permit only *sent* more requests, counted one by one also in a batch; an execution counts as one."""
    send, run = Netlink._send, iptables._run
    left = sent

    def not_executing(*words: Any) -> Any:
        nonlocal left
        if not left:
            raise Cut
        left -= 1
        return run(*words)

    def cutting(self: Netlink, requests: tuple[Request, ...]) -> int:
        nonlocal left
        if len(requests) > left:
            if left:
                send(self, requests[:left])
            raise Cut
        left -= len(requests)
        return send(self, requests)

    patch.setattr(Netlink, "_send", cutting)
    patch.setattr(iptables, "_run", not_executing)


@pytest.mark.parametrize(("config", "ipam"), CASES.values(), ids=[*CASES])
def test_an_add_interrupted_anywhere_can_be_repeated(config: dict[str, Any], ipam: results.Result | None) -> None:
    config = {"cniVersion": "1.0.0", "name": "net"} | config
    plugin = PLUGINS[config["type"]]
    undisturbed: dict[str, Any] = {}
    cuts = 0
    whole = False
    while not whole:
        with node(), container() as netns:
            furnish(config)
            call = Call(container_id="sandbox", netns=netns, ifname="net1", config=config)
            if undisturbed:
                with pytest.MonkeyPatch.context() as patch:
                    cut_after(cuts, patch)
                    try:
                        plugin.add(call, ipam)
                        whole = True
                    except Cut:
                        cuts += 1
            result = json.loads(results.encode(plugin.add(call, ipam), "1.0.0"))
            attached = view(netns, result)
            undisturbed = undisturbed or attached
            assert differences(attached, undisturbed) == [], f"after {cuts} requests"
    assert cuts > 2


@pytest.mark.parametrize(("config", "ipam"), CASES.values(), ids=[*CASES])
def test_a_del_succeeds_on_anything_that_is_gone(config: dict[str, Any], ipam: results.Result | None) -> None:
    config = {"cniVersion": "1.0.0", "name": "net"} | config
    plugin = PLUGINS[config["type"]]
    with node():
        furnish(config)
        with container() as netns:
            call = Call(container_id="sandbox", netns=netns, ifname="net1", config=config)
            plugin.delete(call)
            plugin.add(call, ipam)
            plugin.delete(call)
            detached = view(netns)
            plugin.delete(call)
            assert differences(view(netns), detached) == []
            assert [each["ifname"] for each in detached["container"]["links"]] == ["lo"]
        plugin.delete(call)
        plugin.delete(Call(container_id="sandbox", netns="", ifname="net1", config=config))


@pytest.mark.parametrize("kind", ["bridge", "macvlan", "ptp"])
def test_a_foreign_interface_is_left_unchanged(kind: str) -> None:
    config = {"cniVersion": "1.0.0", "name": "net", "type": kind, "master": "par0", "bridge": "brx"}
    foreign = {"bridge": ("master",), "macvlan": ("bridge",), "ptp": ("master", "bridge")}[kind]
    config = {key: value for key, value in config.items() if key not in foreign}
    with node(), container() as netns:
        furnish(config)
        foreigner = ["link", "add", "net1", "type", "veth", "peer", "name", "other"]
        subprocess.run(["ip", "-n", netns.rpartition("/")[2], *foreigner], check=True)
        before = view(netns)
        call = Call(container_id="sandbox", netns=netns, ifname="net1", config=config)
        with pytest.raises(NativeError, match="has another interface net1 already"):
            PLUGINS[kind].add(call, IPAM)
        assert differences(view(netns)["container"], before["container"]) == []
