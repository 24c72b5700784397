"""Flushed rules of the packet filter are restored, soon and without another change that triggers an inspection.

Each node is in its own network namespace, which has the node's rules.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from events.schema import DriftKind, DriftObserved, DriftRepaired
from tests.e2e.drift.test_drift import kinds, recorded
from tests.support.node.node import Node
from tests.support.node.reconciler_process import reconciler
from tests.support.node.runtime import PodSandbox
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(not shutil.which("nft"), reason="nft is not installed")

_SETTLED = 3.0
"""Seconds after an attach until the kernel has sent all events, including those of usable IPv6 addresses."""
_COUNTERS = re.compile(r"packets \d+ bytes \d+|handle \d+")


@pytest.fixture(scope="module")
def held_node(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(tmp_path_factory.mktemp("n"), shim, native="auto").entered() as node:
        node.start()
        with reconciler(node):
            yield node


def attached(node: Node, name: str) -> PodSandbox:
    """Return a pod that is masqueraded on two networks, by both backends, and whose source MAC is filtered."""
    ipam = node.host_local("10.88.0.0/16")
    wire = {"cniVersion": "1.0.0", "name": "wire", "type": "ptp", "ipMasq": True, "ipMasqBackend": "nftables"}
    node.nad("wire", {**wire, "ipam": ipam})
    pod = node.pod(name, "wire", config=node.conf(node.bridge(ipMasq=True, macspoofchk=True)))
    answer = pod.add()
    assert answer.exit_code == 0, answer
    return pod


def rules() -> list[str]:
    """Return the rules of the node's packet filter, each once, without counters."""
    shown = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    return sorted({_COUNTERS.sub("", line).strip() for line in shown.splitlines()})


def nft(words: str) -> None:
    subprocess.run(["nft", *words.split()], check=True)


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("flush ruleset", {DriftKind.MASQUERADE_MISSING, DriftKind.FILTER_MISSING}),
        ("delete table inet cni_plugins_masquerade", {DriftKind.MASQUERADE_MISSING}),
        ("flush table ip nat", {DriftKind.MASQUERADE_MISSING}),
        ("delete table bridge nat", {DriftKind.FILTER_MISSING}),
    ],
)
def test_flushed_rules_are_restored(held: Node, words: str, lost: set[DriftKind]) -> None:
    if words == "flush table ip nat" and not shutil.which("iptables-restore"):
        pytest.skip("iptables is not installed")
    pods = [attached(held, f"pod-{number}") for number in range(3)]
    time.sleep(_SETTLED)
    before = rules()
    nft(words)
    for pod in pods:
        eventually(lambda pod=pod: recorded(held, pod, DriftRepaired), "the drift is repaired", 10)
        eventually(lambda pod=pod: not held.state().sandboxes[pod.key].drifts, "the ledger knows")
        observed = recorded(held, pod, DriftObserved)[0].drifts
        assert kinds(observed) == lost
        assert all(drift.expected and not drift.found for drift in observed), observed
        assert pod.check().exit_code == 0
    assert rules() == before
    for pod in pods:
        assert pod.delete().exit_code == 0


def test_rules_of_two_interfaces_are_restored_and_removed(held: Node) -> None:
    if not shutil.which("iptables-restore"):
        pytest.skip("iptables is not installed")
    held.nad("twice", held.bridge(name="twice", ipMasq=True))
    pod = held.pod("pod-twice", "twice,twice")
    assert pod.add().exit_code == 0
    time.sleep(_SETTLED)
    made = rules()
    assert len([line for line in made if "jump CNI-" in line]) == 2
    assert pod.check().exit_code == 0
    nft("flush table ip nat")
    eventually(lambda: recorded(held, pod, DriftRepaired), "the drift is repaired", 10)
    eventually(lambda: not held.state().sandboxes[pod.key].drifts, "the ledger knows")
    observed = recorded(held, pod, DriftObserved)[0].drifts
    assert [drift.ifname for drift in observed if drift.kind is DriftKind.MASQUERADE_MISSING] == ["net1", "net2"]
    assert rules() == made
    assert pod.check().exit_code == 0
    assert pod.delete().exit_code == 0
    assert not [line for line in rules() if "CNI-" in line]
