"""Where the kernel has no packet filter, there is nothing to take out of it; and what needs one says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from nodeworker.kernel.layouts import nftsocket
from nodeworker.kernel.nftables import client
from nodeworker.kernel.nftables.client import Chain, Nftables
from nodeworker.kernel.rtnetlink.socket import NetlinkError
from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.filter import iptables
from nodeworker.plugins.native.kinds import ptp
from nodeworker.plugins.native.kinds.bridge import bridge
from tests.support.plugins.kernel_view import container, node
from tests.support.plugins.native_harness import answer, call, names
from tests.support.plugins.without_netfilter import known, without_netfilter

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not known, reason="this machine's system calls are not listed"),
]

IPAM = answer("10.77.0.5/24", "fd77::5/64", gateways=("10.77.0.1", "fd77::1"))
STATIC = {"type": "static", "addresses": [{"address": "10.77.0.5/24", "gateway": "10.77.0.1"}]}
PLUGINS: dict[str, Any] = {"bridge": bridge, "ptp": ptp}
CONFIGS: dict[str, dict[str, Any]] = {
    "bridge": {"type": "bridge", "bridge": "br0", "ipMasq": True, "ipam": STATIC},
    "ptp": {"type": "ptp", "ipMasq": True, "ipam": STATIC},
    "confined": {"type": "bridge", "bridge": "br0", "macspoofchk": True},
}
BACKENDS = [
    pytest.param(
        "iptables", marks=pytest.mark.skipif(not shutil.which("iptables"), reason="iptables is not installed")
    ),
    "nftables",
]


@pytest.fixture
def no_older_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel seem to have been built without the older filter, too."""
    monkeypatch.setattr(iptables, "_OLDER_TABLES", {4: "no_tables_names", 6: "no_tables_names"})


def on_such_a_node(config: dict[str, Any], work: Callable[[Any, Call], None], **more: Any) -> None:
    def run() -> None:
        with node(), container() as netns:
            asked = call(config, netns, **more)
            work(PLUGINS[config["type"]], asked)

    without_netfilter(run)


@pytest.mark.usefixtures("no_older_filter")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=[*CONFIGS])
def test_an_add_says_what_the_kernel_lacks_and_its_del_succeeds(config: dict[str, Any], backend: str) -> None:
    def attach_and_detach(plugin: Any, asked: Call) -> None:
        feature = r"\(macspoofchk\)" if "macspoofchk" in config else r"\(ipMasq\)"
        words = rf"^can't .* of net1 {feature} with .*: this node's kernel has no .*: load its modules$"
        with pytest.raises(NativeError, match=words):
            plugin.add(asked, IPAM if "ipam" in config else None)
        for _ in range(2):
            plugin.delete(asked)
        plugin.delete(call(config, ""))
        plugin.collect(call(config, "", container_id="", ifname=""), ())
        assert names(asked.netns) == {"lo"}

    on_such_a_node(config | {"ipMasqBackend": backend}, attach_and_detach)


@pytest.mark.usefixtures("no_older_filter")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=[*CONFIGS])
def test_check_reports_missing_rules(config: dict[str, Any], backend: str) -> None:
    plain = {key: value for key, value in config.items() if key not in {"ipMasq", "macspoofchk"}}
    given = IPAM if "ipam" in config else None

    def attach_and_check(plugin: Any, asked: Call) -> None:
        result = plugin.add(call(plain, asked.netns), given)
        with pytest.raises(NativeError, match=r"no longer masqueraded|is gone"):
            plugin.check(call(asked.config, asked.netns, prev_result=result))
        plugin.delete(call(asked.config, asked.netns, prev_result=result))
        assert names(asked.netns) == {"lo"}

    on_such_a_node(config | {"ipMasqBackend": backend}, attach_and_check)


@pytest.mark.skipif(not shutil.which("iptables"), reason="iptables is not installed")
@pytest.mark.skipif(not os.path.exists("/proc/net/ip_tables_names"), reason="the kernel has no older filter")
def test_a_program_that_fails_where_there_may_be_rules_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    tables = tmp_path / "names"
    tables.write_text("filter\nnat\n")
    monkeypatch.setattr(iptables, "_OLDER_TABLES", {4: str(tables), 6: str(tables)})

    def detach(plugin: Any, asked: Call) -> None:
        with pytest.raises(NativeError, match="can't list the chains of iptables"):
            plugin.delete(asked)

    on_such_a_node(CONFIGS["ptp"], detach)


@pytest.mark.skipif(not shutil.which("iptables"), reason="iptables is not installed")
def test_rules_of_the_newer_filter_that_can_not_be_listed_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with node(), container() as netns:
        ptp.add(call(CONFIGS["ptp"] | {"ipMasqBackend": "iptables"}, netns), IPAM)
        monkeypatch.setattr(iptables, "_LIST", {4: "false", 6: "false"})
        with pytest.raises(NativeError, match="can't list the chains of iptables"):
            ptp.delete(call(CONFIGS["ptp"], netns))


def test_without_nf_tables_a_change_fails_and_a_lookup_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    # Connection tracking takes no changes together: the kernel's answer is that for a part that it was built without.
    monkeypatch.setattr(client, "_SUBSYSTEM", 1)
    with node(), Nftables.on_node() as nft:
        with pytest.raises(NetlinkError, match=r"this node's kernel has no nf_tables .*: load its modules"):
            nft.commit(client.table(nftsocket.NFPROTO_INET, "table"))
        chain = Chain(nftsocket.NFPROTO_INET, "table", "chain")
        assert (nft.rules(chain), nft.has_chain(chain), nft.has_table(nftsocket.NFPROTO_INET, "table")) == (
            [],
            False,
            False,
        )
        assert nft.is_supported()
