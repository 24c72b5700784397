"""The CNI versions that Plumbline supports; a plugin is called in the highest one that both support.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Every released version of the CNI specification, lowest first."""

UNSTATED = "0.1.0"
"""The version of a configuration that states none."""

_SHOWN = 64


class ConfigError(ValueError):
    """A network configuration that can't be used; its text is one sentence that says why."""


def at_least(version: str, floor: str) -> bool:
    """Tell whether *version* is *floor* or newer. An empty version is 0.1.0. Raises ConfigError."""
    return _parts(version or UNSTATED) >= _parts(floor)


def highest(version: str, versions: Sequence[str] = ()) -> str:
    """Return the highest supported version among *version* and *versions* (``cniVersion`` and ``cniVersions``).

    Versions that are not supported are passed over as long as one is (CNI specification 1.1, section 1, "Version
    considerations"). Stating none at all means 0.1.0. Raises ConfigError.
    """
    stated = [each for each in (version, *versions) if each] or [UNSTATED]
    supported = [each for each in SUPPORTED if each in stated]
    if not supported:
        known = ", ".join(SUPPORTED)
        raise ConfigError(f"cniVersion {_brief(', '.join(stated))} is not supported: use one of {known}")
    return supported[-1]


def _parts(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version.split("."))
    except ValueError:
        raise ConfigError(f"cniVersion {_brief(version)!r} is not a version: write it like {SUPPORTED[-1]}") from None


def _brief(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
