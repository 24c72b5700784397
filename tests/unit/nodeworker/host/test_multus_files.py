"""The configurations in the manifests and the documentation of Multus (4.3.0), word for word in ours.

Each works as it is, or ``plumbline check-config`` refuses it with the key and the remedy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from events.process.settings import InstallSection, SettingsError
from nodeworker.host.install.generate import from_primary
from nodeworker.host.install.primary import find
from nodeworker.planning.resolve.netconf import NodeDefaults, parse_defaults, parse_netconf
from nodeworker.settings import Checked, check
from tests.support.host.install_harness import BRIDGE

NET_D = "/host/etc/cni/net.d"
FLANNEL = {"type": "flannel", "name": "flannel.1", "delegate": {"isDefaultGateway": True, "hairpinMode": True}}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
KUBECONFIG = "/etc/cni/net.d/multus.d/multus.kubeconfig"
LOGGED = {"logFile": "/var/log/multus.log", "logLevel": "debug"}
ROTATED = {"maxAge": 5, "maxSize": 100, "maxBackups": 5, "compress": True}
FOLDERS = {"confDir": "/etc/cni/multus/net.d", "cniDir": "/var/lib/cni/multus", "binDir": "/opt/cni/bin"}
NODE = {"cniVersion": "0.3.1", "name": "node-cni-network", "type": "multus", **FOLDERS}
GENERATED = {"cniConfigDir": NET_D, "multusAutoconfigDir": NET_D, "multusConfigFile": "auto"}


class Shipped(NamedTuple):
    """One file."""

    keys: dict[str, Any]
    refused: tuple[str, ...] = ()
    """Parts of the sentences that refuse it, if they do."""


SHIPPED = {
    "deployments/multus-daemonset-thick.yml": Shipped(
        {
            "chrootDir": "/hostroot",
            "cniVersion": "0.3.1",
            "logLevel": "verbose",
            "logToStderr": True,
            **GENERATED,
            "socketDir": "/host/run/multus/",
        }
    ),
    "deployments/multus-daemonset.yml and -crio.yml": Shipped(
        {
            "name": "multus-cni-network",
            "type": "multus",
            "capabilities": {"portMappings": True},
            "delegates": [{"cniVersion": "0.3.1", "name": "default-cni-network", "plugins": [FLANNEL, PORTMAP]}],
            "kubeconfig": KUBECONFIG,
        }
    ),
    "docs/configuration.md, clusterNetwork": Shipped(
        {
            **NODE,
            **LOGGED,
            "kubeconfig": "/etc/kubernetes/node-kubeconfig.yaml",
            "logOptions": ROTATED,
            "capabilities": {"portMappings": True},
            "namespaceIsolation": False,
            "clusterNetwork": "/etc/cni/net.d/99-flannel.conf",
            "defaultNetworks": ["sidecarCRD", "exampleNetwork"],
            "systemNamespaces": ["kube-system", "admin"],
            "multusNamespace": "kube-system",
            "auxiliaryCNIChainName": "cni-chain-config",
            "allowTryDeleteOnErr": False,
        }
    ),
    "docs/configuration.md, delegates": Shipped(
        {
            **NODE,
            "kubeconfig": "/etc/kubernetes/node-kubeconfig.yaml",
            "delegates": [{"type": "weave-net", "hairpinMode": True}, {"type": "macvlan"}],
        },
        ("element 1 of delegates: the configuration has no name",),
    ),
    "docs/configuration.md, auxiliaryCNIChainName": Shipped(
        {**GENERATED, "socketDir": "/host/run/multus/", "auxiliaryCNIChainName": "cni-chain-config"}
    ),
    "docs/thick-plugin.md": Shipped(
        {
            "chrootDir": "/hostroot",
            "confDir": NET_D,
            "logToStderr": True,
            "logLevel": "verbose",
            "logFile": "/tmp/multus.log",
            "binDir": "/opt/cni/bin",
            "cniDir": "/var/lib/cni/multus",
            "socketDir": "/host/run/multus/",
            "cniVersion": "0.3.1",
            **GENERATED,
        },
        ("confDir: /host/etc/cni/net.d does not exist", "; write /etc/cni/net.d"),
    ),
    "docs/how-to-use.md": Shipped(
        {
            "name": "multus-cni-network",
            "type": "multus",
            "readinessindicatorfile": "/run/flannel/subnet.env",
            "delegates": [{"NOTE1": "an example", "NOTE2": "the daemonset", **FLANNEL}],
            "kubeconfig": KUBECONFIG,
        }
    ),
    "e2e/templates/multus-daemonset-thick.yml.j2": Shipped(
        {
            "confDir": NET_D,
            "logToStderr": True,
            "logLevel": "debug",
            "logFile": "/tmp/multus.log",
            "binDir": "/host/opt/cni/bin",
            "cniDir": "/var/lib/cni/multus",
            "socketDir": "/host/run/multus",
            "cniVersion": "0.3.1",
            **GENERATED,
            "forceCNIVersion": True,
            "connectionLimit": 1,
        },
        ("confDir: /host/etc/cni/net.d does not exist", "binDir: /host/opt/cni/bin does not exist", "/opt/cni/bin"),
    ),
}


def checked(tmp_path: Path, where: str, keys: dict[str, Any]) -> Checked:
    path = tmp_path / "plumbline.json"
    path.write_text(json.dumps({where: {"network": keys}}))
    return check(path)


def handed(tmp_path: Path, **network: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the runtime gives to the entry point on a node with a default network, and the question of STATUS."""
    (tmp_path / "10-pods.conflist").write_text(json.dumps(BRIDGE))
    generated = from_primary(find(tmp_path), InstallSection(cni_conf_dir=str(tmp_path), network=network))
    written = json.loads(generated.content)
    plugin = {**written.get("plugins", [written])[0], "name": written["name"], "cniVersion": written["cniVersion"]}
    return plugin, json.loads(generated.question)


@pytest.mark.parametrize("file", [name for name, shipped in SHIPPED.items() if not shipped.refused])
@pytest.mark.parametrize("where", ["install", "worker"])
def test_file_of_multus_works_word_for_word(tmp_path: Path, file: str, where: str) -> None:
    keys = SHIPPED[file].keys
    found = checked(tmp_path, where, keys)
    assert (found.missing, found.notes) == ([], [])
    network, defaults = (keys, NodeDefaults()) if where == "install" else ({}, parse_defaults(keys))
    for config in handed(tmp_path, **network):
        conf = parse_netconf(json.dumps(config), defaults)
        assert conf.name == "pods"
        assert conf.auxiliary_chain == keys.get("auxiliaryCNIChainName", "")
        assert conf.chain_base or not conf.auxiliary_chain
        by_path = where == "install" and (keys.get("clusterNetwork") or "auxiliaryCNIChainName" in keys)
        assert bool(conf.cluster_network) == bool(by_path)


@pytest.mark.parametrize("file", [name for name, shipped in SHIPPED.items() if shipped.refused])
@pytest.mark.parametrize("where", ["install", "worker"])
def test_refused_file_of_multus_names_key_and_remedy(tmp_path: Path, file: str, where: str) -> None:
    try:
        sentences = "\n".join(checked(tmp_path, where, SHIPPED[file].keys).missing)
    except SettingsError as error:
        sentences = str(error)
    assert f"{where}.network" in sentences or "network can't be used" in sentences
    for part in SHIPPED[file].refused:
        assert part in sentences


def test_chain_beside_a_cluster_network_by_name_is_refused_at_once(tmp_path: Path) -> None:
    keys = {"clusterNetwork": "podnet", "auxiliaryCNIChainName": "vendor"}
    with pytest.raises(SettingsError, match=r"clusterNetwork, which is not a path: make it one, or set chainDir"):
        checked(tmp_path, "worker", keys)
    assert checked(tmp_path, "worker", {**keys, "chainDir": "/etc/cni/net.d"}).missing == []
    assert checked(tmp_path, "install", keys).missing == []  # the installer knows the folder
    for config in handed(tmp_path, **keys):
        assert parse_netconf(json.dumps(config), NodeDefaults()).chain_base == str(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("plugins", []), ("capabilities", ["mac"]), ("namespaceIsolation", "yes")])
def test_key_that_blocks_the_installation_is_refused_at_once(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"install.network can't be used: .*{key}"):
        checked(tmp_path, "install", {key: value})
