"""The generated configuration for the runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from events.process.settings import InstallSection
from nodeworker.host.install import InstallError
from nodeworker.host.install.generate import Generated, from_multus, from_primary
from nodeworker.host.install.primary import find
from nodeworker.planning.resolve.netconf import NodeDefaults, parse_netconf
from tests.support.host.install_harness import BRIDGE, MULTUS, SINGLE


def wrapped(folder: Path, config: dict[str, Any], **keys: Any) -> Generated:
    (folder / "10-primary.conf").write_text(json.dumps(config))
    return from_primary(find(folder), InstallSection(cni_conf_dir=str(folder), **keys))


def taken_over(folder: Path, config: dict[str, Any], **keys: Any) -> Generated:
    path = folder / "00-multus.conf"
    path.write_text(json.dumps(config))
    return from_multus(path, InstallSection(cni_conf_dir=str(folder), **keys))


def test_a_list_becomes_the_delegate_of_a_list(tmp_path: Path) -> None:
    generated = wrapped(tmp_path, BRIDGE)
    assert generated.file_name == "00-plumbline.conflist"
    assert json.loads(generated.content) == {
        "cniVersion": "1.0.0",
        "name": "pods",
        "loadOnlyInlinedPlugins": True,
        "plugins": [
            {
                "type": "plumbline",
                "capabilities": {"bandwidth": True, "portMappings": True},
                "chainDir": str(tmp_path),
                "delegates": [BRIDGE],
            }
        ],
    }


def test_an_old_version_becomes_a_single_configuration(tmp_path: Path) -> None:
    generated = wrapped(tmp_path, SINGLE)
    assert generated.file_name == "00-plumbline.conf"
    assert json.loads(generated.content) == {
        "cniVersion": "0.3.1",
        "name": "flat",
        "type": "plumbline",
        "capabilities": {"mac": True},
        "chainDir": str(tmp_path),
        "delegates": [SINGLE],
    }


def test_configured_keys_and_name_are_included(tmp_path: Path) -> None:
    given = {"namespaceIsolation": True, "globalNamespaces": "default,shared", "capabilities": {"ips": True}}
    conf = json.loads(wrapped(tmp_path, SINGLE, network=given, network_name="ours").content)
    assert conf["name"] == "ours"
    assert conf["capabilities"] == {"ips": True, "mac": True}
    assert (conf["namespaceIsolation"], conf["globalNamespaces"]) == (True, "default,shared")
    assert conf["delegates"] == [SINGLE]


def test_keys_that_need_cluster_network_get_a_path(tmp_path: Path) -> None:
    conf = json.loads(wrapped(tmp_path, SINGLE, network={"defaultNetworks": ["storage"]}).content)
    assert conf["clusterNetwork"] == str(tmp_path / "10-primary.conf")
    assert "delegates" not in conf


def test_configured_default_network_is_kept(tmp_path: Path) -> None:
    conf = json.loads(wrapped(tmp_path, SINGLE, network={"clusterNetwork": "from-nad"}).content)
    assert conf["clusterNetwork"] == "from-nad"
    assert "delegates" not in conf


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"plugins": []}, "plugins can't be one of the configured keys"),
        ({"namespaceIsolation": "yes"}, "namespaceIsolation"),
        ({"capabilities": ["mac"]}, "not a JSON object"),
        ({"delegates": []}, "names no default network"),
    ],
)
def test_keys_that_the_worker_would_refuse_are_refused(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InstallError, match=said):
        wrapped(tmp_path, SINGLE, network=given)


@pytest.mark.parametrize("config", [BRIDGE, SINGLE])
def test_the_worker_reads_the_generated_configuration(tmp_path: Path, config: dict[str, Any]) -> None:
    generated = json.loads(wrapped(tmp_path, config).content)
    plugin = generated["plugins"][0] if "plugins" in generated else generated
    handed = {**plugin, "name": generated["name"], "cniVersion": generated["cniVersion"]}
    (delegate,) = parse_netconf(json.dumps(handed), NodeDefaults()).delegates
    assert json.loads(msgspec.json.encode(delegate)) == config


def test_multus_keeps_everything_but_its_type(tmp_path: Path) -> None:
    generated = taken_over(tmp_path, MULTUS)
    assert generated.file_name == "00-plumbline.conf"
    assert json.loads(generated.content) == {**MULTUS, "type": "plumbline"}


def test_multus_in_a_list_keeps_its_neighbours(tmp_path: Path) -> None:
    head = {"cniVersion": "1.0.0", "name": "meta", "disableCheck": True}
    multus = {"type": "multus-shim", "clusterNetwork": "pods", "daemonSocketDir": "/run/multus"}
    conf = json.loads(taken_over(tmp_path, {**head, "plugins": [multus, {"type": "tuning"}]}).content)
    assert conf == {**head, "plugins": [{**multus, "type": "plumbline"}, {"type": "tuning"}]}


def test_the_single_configuration_of_a_new_version_becomes_a_list(tmp_path: Path) -> None:
    """Multus' daemon writes a single configuration for every version; CNI 1.0 and later accept only lists."""
    generated = taken_over(tmp_path, {**MULTUS, "cniVersion": "1.0.0"})
    assert generated.file_name == "00-plumbline.conflist"
    conf = json.loads(generated.content)
    assert conf["plugins"][0]["delegates"] == [BRIDGE]
    assert conf["loadOnlyInlinedPlugins"] is True


def test_a_path_of_multus_container_is_found_on_the_host(tmp_path: Path) -> None:
    (tmp_path / "10-pods.conflist").write_text(json.dumps(BRIDGE))
    multus = {**MULTUS, "clusterNetwork": "/host/etc/cni/net.d/10-pods.conflist"}
    conf = json.loads(taken_over(tmp_path, multus).content)
    assert conf["clusterNetwork"] == str(tmp_path / "10-pods.conflist")
    with pytest.raises(InstallError, match="neither it nor"):
        taken_over(tmp_path, {**MULTUS, "clusterNetwork": "/host/etc/cni/net.d/20-pods.conflist"})


def test_multus_file_without_multus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="does not run Multus"):
        taken_over(tmp_path, {**MULTUS, "type": "plumbline"})
