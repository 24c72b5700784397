from __future__ import annotations

import pytest

from nodeworker.plugins.spec.versions import SUPPORTED, ConfigError, at_least, highest


@pytest.mark.parametrize(
    ("version", "versions", "chosen"),
    [
        ("", [], "0.1.0"),
        ("0.3.1", [], "0.3.1"),
        ("", ["0.4.0"], "0.4.0"),
        ("0.3.1", ["0.4.0", "1.0.0"], "1.0.0"),
        ("1.0.0", ["0.3.1"], "1.0.0"),
        ("1.0.0", ["1.1.0", "1.2.0", "99.0.0"], "1.1.0"),
        ("1.2.0", ["1.0.0"], "1.0.0"),
    ],
)
def test_highest_supported_version_is_chosen(version: str, versions: list[str], chosen: str) -> None:
    assert highest(version, versions) == chosen


@pytest.mark.parametrize(("version", "versions"), [("1.2.0", []), ("banana", []), ("2.0.0", ["3.0.0"])])
def test_no_supported_version_is_refused_by_name(version: str, versions: list[str]) -> None:
    with pytest.raises(ConfigError, match=version):
        highest(version, versions)


def test_versions_compare_by_number() -> None:
    assert list(SUPPORTED) == sorted(SUPPORTED, key=lambda version: [at_least(version, floor) for floor in SUPPORTED])
    assert at_least("0.10.0", "0.4.0")
    assert not at_least("", "0.2.0")


def test_text_that_is_no_version_is_refused() -> None:
    with pytest.raises(ConfigError, match="banana"):
        at_least("banana", "0.4.0")
