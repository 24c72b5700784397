"""The choice of the default network's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodeworker.host.install import InstallError, NotYetError
from nodeworker.host.install.primary import find
from tests.support.host.install_harness import BRIDGE, MULTUS, SINGLE


def write(folder: Path, **files: Any) -> None:
    for name, config in files.items():
        path = folder / name.replace("__", "-").replace("_", ".")
        path.write_text(config if isinstance(config, str) else json.dumps(config))


def test_first_file_by_name_is_used(tmp_path: Path) -> None:
    write(tmp_path, b_conf=SINGLE, a_conflist=BRIDGE, c_json=SINGLE, a_txt="no configuration")
    found = find(tmp_path)
    assert found.path == tmp_path / "a.conflist"
    assert (found.parsed.name, found.parsed.cni_version) == ("pods", "1.0.0")
    assert found.config == BRIDGE


def test_a_json_file_is_a_configuration_too(tmp_path: Path) -> None:
    write(tmp_path, a_json=SINGLE)
    assert find(tmp_path).path.name == "a.json"


@pytest.mark.parametrize(
    "config",
    [
        {"cniVersion": "1.0.0", "name": "x", "type": "plumbline"},
        {"cniVersion": "1.0.0", "name": "x", "type": "multus"},
        {"cniVersion": "1.0.0", "name": "x", "type": "multus-shim"},
        {"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "tuning"}, {"type": "plumbline"}]},
        {"cniVersion": "1.0.0", "name": "x", "type": "other-meta", "delegates": [{"plugins": [{"type": "multus"}]}]},
        {"cniVersion": "0.3.1", "type": "loopback"},
    ],
)
def test_meta_plugins_and_loopback_are_skipped(tmp_path: Path, config: dict[str, Any]) -> None:
    write(tmp_path, a_conf=config, b_conf=SINGLE)
    assert find(tmp_path).path.name == "b.conf"


def test_own_and_multus_files_are_skipped_unread(tmp_path: Path) -> None:
    write(
        tmp_path,
        **{"00__plumbline_conf": "{", "00__plumbline_conflist": "{", "00__multus_conf": "", "00__multus_conflist": "{"},
        z_conf=SINGLE,
    )
    assert find(tmp_path).path.name == "z.conf"


@pytest.mark.parametrize("torn", ["", '{"cniVersion": "1.0', "[]", "\udcff"])
def test_half_written_file_is_not_skipped(tmp_path: Path, torn: str) -> None:
    (tmp_path / "a.conf").write_bytes(torn.encode(errors="surrogateescape"))
    write(tmp_path, b_conf=SINGLE)
    with pytest.raises(NotYetError, match=r"a\.conf"):
        find(tmp_path)


def test_folder_without_a_network_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, a_conf=MULTUS)
    with pytest.raises(NotYetError, match="has no configuration of a default network"):
        find(tmp_path)
    with pytest.raises(NotYetError, match="can't be listed"):
        find(tmp_path / "nowhere")


def test_named_file_is_used(tmp_path: Path) -> None:
    write(tmp_path, a_conf=SINGLE, b_conflist=BRIDGE, c_conf=MULTUS)
    assert find(tmp_path, "b.conflist").parsed.name == "pods"
    with pytest.raises(NotYetError, match=r"d\.conf"):
        find(tmp_path, "d.conf")
    with pytest.raises(InstallError, match="runs Plumbline or Multus itself"):
        find(tmp_path, "c.conf")


@pytest.mark.parametrize(
    "broken",
    [
        {"cniVersion": "9.0.0", "name": "x", "type": "bridge"},
        {"cniVersion": "1.0.0", "type": "bridge"},
        {"cniVersion": "1.0.0", "name": "x"},
        {"cniVersion": "1.0.0", "name": "x", "plugins": [{}]},
        {"cniVersion": "1.0.0", "name": "../x", "plugins": [{"type": "bridge"}]},
    ],
)
def test_unusable_configuration_is_refused(tmp_path: Path, broken: dict[str, Any]) -> None:
    write(tmp_path, a_conf=broken, b_conf=SINGLE)
    with pytest.raises(InstallError, match="not a usable configuration"):
        find(tmp_path)


def test_plugins_in_separate_files_join_the_list(tmp_path: Path) -> None:
    write(tmp_path, a_conflist=BRIDGE)
    (tmp_path / "pods").mkdir()
    write(
        tmp_path / "pods", b_conf={"type": "sbr"}, a_conf={"type": "tuning", "capabilities": {"mac": True}}, c_json={}
    )
    found = find(tmp_path)
    assert [plugin["type"] for plugin in found.parsed.plugins] == ["bridge", "portmap", "bandwidth", "tuning", "sbr"]
    assert found.config == BRIDGE

    write(tmp_path, a_conflist={**BRIDGE, "loadOnlyInlinedPlugins": True})
    assert len(find(tmp_path).parsed.plugins) == 3


def test_list_can_have_only_separate_files(tmp_path: Path) -> None:
    write(tmp_path, a_conflist={"cniVersion": "1.1.0", "name": "pods"})
    (tmp_path / "pods").mkdir()
    write(tmp_path / "pods", a_conf={"type": "bridge"})
    assert find(tmp_path).parsed.plugins == ({"type": "bridge"},)
