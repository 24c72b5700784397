"""The part of the worker's configuration that has Multus' keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from events.process.settings import SettingsError, load
from nodeworker.settings import WorkerSection, WorkerSettings


def section(tmp_path: Path, network: Any) -> WorkerSection:
    path = tmp_path / "plumbline.json"
    path.write_text(json.dumps({"worker": {"network": network}}))
    return load(path, WorkerSettings).worker


def test_keys_of_multus_are_read_as_multus_reads_them(tmp_path: Path) -> None:
    network = {"ClusterNetwork": "podnet", "confDir": None, "cniDir": "/var/lib/cni/multus", "type": "multus"}
    found = section(tmp_path, network)
    assert (found.network.cluster_network, found.network.conf_dir) == ("podnet", "/etc/cni/multus/net.d")
    assert found.unknown_network_keys == ()


def test_an_unknown_key_is_named_and_not_an_error(tmp_path: Path) -> None:
    found = section(tmp_path, {"clusterNetwork": "podnet", "clusterNetworks": ["x"]})
    assert found.unknown_network_keys == ("clusterNetworks",)
    assert found.network.cluster_network == "podnet"


@pytest.mark.parametrize("network", [{"delegates": {}}, {"namespaceIsolation": "yes"}, []])
def test_value_of_the_wrong_kind_is_refused_at_the_start(tmp_path: Path, network: Any) -> None:
    with pytest.raises(SettingsError, match="network"):
        section(tmp_path, network)


def test_unknown_answer_to_unrequested_default_routes_is_refused() -> None:
    assert WorkerSection().unrequested_default_route == "warn"
    with pytest.raises(ValueError, match="unrequestedDefaultRoute is 'ignore', not warn or refuse"):
        WorkerSection(unrequested_default_route="ignore")


def test_the_defaults_are_those_of_multus() -> None:
    assert WorkerSection().network.bin_dir == "/opt/cni/bin"
