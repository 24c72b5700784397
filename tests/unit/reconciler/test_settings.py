from __future__ import annotations

from pathlib import Path

import pytest

from events.process.settings import SettingsError, load
from reconciler.settings import ReconcilerSettings


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plumbline.json"
    path.write_text(text)
    return path


def test_the_database_is_a_file_in_the_state_folder_by_default(tmp_path: Path) -> None:
    assert (
        load(write(tmp_path, '{"stateDir": "/srv/pl"}'), ReconcilerSettings).database
        == "sqlite:////srv/pl/reconciler.db"
    )


def test_sections_of_other_processes_are_tolerated(tmp_path: Path) -> None:
    settings = load(write(tmp_path, '{"worker": {"x": 1}, "reconciler": {"metrics": {"port": 9}}}'), ReconcilerSettings)
    assert settings.reconciler.metrics.port == 9


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ('{"databse": "sqlite:////x"}', "databse"),
        ('{"metrics": {"prot": 1}}', "prot"),
        ('{"retentionDays": -1}', "retentionDays is -1"),
        ('{"snapshots": {"keep": 0}}', "keep is 0"),
        ('{"snapshots": {"interval": 0.5}}', "interval is 0.5"),
        ('{"snapshots": {"folder": "x"}}', "folder is 'x'"),
        ('{"database": "mysql://x/y"}', "mysql"),
        ('{"database": "sqlite://"}', "names no file"),
        ('{"database": "sqlite:///:memory:"}', "names no file"),
    ],
)
def test_an_invalid_section_is_refused_by_name(tmp_path: Path, section: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load(write(tmp_path, f'{{"reconciler": {section}}}'), ReconcilerSettings)
