"""Networks that are files on the node."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeworker.cluster.on_disk import find_config, read_config

CONF = '{"name": "wanted", "type": "macvlan"}'


@pytest.mark.parametrize("suffix", [".conf", ".json", ".conflist"])
def test_configuration_is_found_by_its_name_not_the_files(tmp_path: Path, suffix: str) -> None:
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


def test_files_that_were_passed_over_are_named_when_nothing_matches(tmp_path: Path) -> None:
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


def test_path_without_configuration_is_nothing(tmp_path: Path) -> None:
    assert read_config(tmp_path) == (None, ())
    assert read_config(tmp_path / "none.conf").skipped == (f"{tmp_path}/none.conf: No such file or directory",)
