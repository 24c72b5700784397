"""Networks that are files on the node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nodeworker.planning.cluster.node_files import auxiliary_chain, find_config, read_config

CONF = '{"name": "wanted", "type": "macvlan"}'


@pytest.mark.parametrize("suffix", [".conf", ".json", ".conflist"])
def test_configuration_is_found_by_its_own_name(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "wanted.conf").write_text('{"name": "other", "type": "bridge"}')
    (tmp_path / f"zzz{suffix}").write_text(CONF)
    assert find_config(tmp_path, "wanted").config == CONF


def test_first_file_by_name_wins(tmp_path: Path) -> None:
    for name in ("20.conflist", "10.json", "05.txt", "30.conf"):
        (tmp_path / name).write_text(CONF.replace("macvlan", name))
    found = find_config(tmp_path, "wanted")
    assert found.config == CONF.replace("macvlan", "10.json")


def test_malformed_file_does_not_hide_another_network(tmp_path: Path) -> None:
    (tmp_path / "00.conf").write_text("{")
    (tmp_path / "01.conf").write_text("[]")
    (tmp_path / "02.conf").write_bytes(b"\xff")
    (tmp_path / "03.conf").mkdir()
    (tmp_path / "04.conf").symlink_to("nowhere")
    (tmp_path / "99.conf").write_text(CONF)
    assert find_config(tmp_path, "wanted") == (CONF, ())


def test_error_names_skipped_files(tmp_path: Path) -> None:
    (tmp_path / "00.conf").write_text("{")
    (tmp_path / "02.conf").write_bytes(b"\xff")
    (tmp_path / "99.conf").write_text(CONF)
    found = find_config(tmp_path, "unknown")
    assert found.config is None
    assert [reason.partition(":")[0] for reason in found.skipped] == [f"{tmp_path}/00.conf", f"{tmp_path}/02.conf"]


def test_missing_folder_is_named(tmp_path: Path) -> None:
    found = find_config(tmp_path / "none", "wanted")
    assert found.config is None
    assert found.skipped == (f"{tmp_path}/none: No such file or directory",)


def test_path_is_a_file_or_the_first_file_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("nothing")
    (tmp_path / "20.conf").write_text("second")
    (tmp_path / "10.conflist").write_text("first")
    assert read_config(tmp_path / "20.conf").config == "second"
    assert read_config(tmp_path / "README").config == "nothing"
    assert read_config(tmp_path).config == "first"


def test_path_without_configuration_is_none(tmp_path: Path) -> None:
    assert read_config(tmp_path) == (None, ())
    assert read_config(tmp_path / "none.conf").skipped == (f"{tmp_path}/none.conf: No such file or directory",)


LIST = """{"cniVersion": "1.0.0", "name": "podnet", "unheard-of": {"n": 1.5e3, "big": 12345678901234567890123},
 "plugins": [ {"type": "ptp", "mtu": 1.50} ]%s}"""


@pytest.fixture
def chained(tmp_path: Path) -> Path:
    """A list that continues in a folder."""
    (tmp_path / "podnet").mkdir()
    (tmp_path / "podnet" / "20-b.conf").write_text('{"type": "b", "weight": 2.50, "id": 98765432109876543210987}')
    (tmp_path / "podnet" / "10-a.conf").write_text('{"type": "a"}')
    (tmp_path / "podnet" / "15-c.conflist").write_text("is not looked at")
    (tmp_path / "podnet" / "sub.conf").mkdir()
    path = tmp_path / "10.conflist"
    path.write_text(LIST % "")
    return path


def types(text: str | None) -> list[str]:
    return [plugin["type"] for plugin in json.loads(text or "")["plugins"]]


def test_list_continues_in_the_folder_of_its_name(chained: Path) -> None:
    assert types(read_config(chained).config) == ["ptp", "a", "b"]


def test_numbers_of_plugins_are_preserved(chained: Path) -> None:
    text = read_config(chained).config or ""
    for digits in ("1.5e3", "12345678901234567890123", "1.50", "2.50", "98765432109876543210987"):
        assert digits in text


def test_list_can_have_all_plugins_in_its_folder(chained: Path) -> None:
    chained.write_text('{"cniVersion": "1.0.0", "name": "podnet"}')
    assert types(read_config(chained).config) == ["a", "b"]


def test_list_with_only_inlined_plugins_is_unchanged(chained: Path) -> None:
    text = LIST % ', "loadOnlyInlinedPlugins": true'
    chained.write_text(text)
    assert read_config(chained).config == text


def test_invalid_load_only_inlined_is_refused(chained: Path) -> None:
    chained.write_text(LIST % ', "loadOnlyInlinedPlugins": "false"')
    assert read_config(chained) == (None, (f"{chained}: loadOnlyInlinedPlugins is neither true nor false",))


def test_list_without_folder_is_unchanged(tmp_path: Path) -> None:
    (tmp_path / "10.conflist").write_text(LIST % "")
    (tmp_path / "podnet").mkdir()
    assert read_config(tmp_path / "10.conflist").config == LIST % ""


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"plugins": []}', '{"name": 5}', '{"name": "../podnet"}', '{"name": "podnet", "type": "single"}'],
)
def test_unusable_list_is_left_to_the_parser(chained: Path, text: str) -> None:
    chained.write_text(text)
    assert read_config(chained).config == text


def test_only_a_list_by_path_continues(chained: Path) -> None:
    assert types(find_config(chained.parent, "podnet").config) == ["ptp"]
    assert types(read_config(chained.parent).config) == ["ptp"]
    other = chained.rename(chained.with_suffix(".conf"))
    assert types(read_config(other).config) == ["ptp"]


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "no type"}', '{"type": ""}'])
def test_unreadable_plugin_fails_the_network(chained: Path, text: str) -> None:
    broken = chained.parent / "podnet" / "20-b.conf"
    broken.write_text(text)
    for found in (read_config(chained), auxiliary_chain(chained, "podnet", "1.0.0")):
        assert found.config is None
        assert found.skipped[0].startswith(f"{broken}: ")


def test_auxiliary_chain_begins_with_passthru(chained: Path) -> None:
    text = auxiliary_chain(chained, "podnet", "0.4.0").config
    assert types(text) == ["passthru", "a", "b"]
    assert json.loads(text or "")["cniVersion"] == "0.4.0"
    assert json.loads(text or "")["name"] == "podnet"
    assert auxiliary_chain(chained.parent, "podnet", "0.4.0").config == text


def test_auxiliary_chain_without_a_plugin_is_none(chained: Path) -> None:
    (chained.parent / "empty").mkdir()
    assert auxiliary_chain(chained, "empty", "1.0.0") == (None, ())
    assert auxiliary_chain(chained, "absent", "1.0.0") == (None, ())
