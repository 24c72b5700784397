"""Find keys of the configuration file that no setting has, and the setting that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import inspect


def unknown_keys(document: Mapping[str, Any], kind: type[msgspec.Struct], sections: Collection[str]) -> Iterator[str]:
    """Yield a sentence about each key of *document* that *kind* does not have.

    *sections*: keys of the top level that belong to other processes. An object below the top is only searched if its
    type forbids unknown keys.
    """
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    yield from _unknown(document, info, "", sections)


def _unknown(
    document: Mapping[str, Any], info: inspect.StructType, path: str, sections: Collection[str]
) -> Iterator[str]:
    fields = {field.encode_name: field.type for field in info.fields}
    for key, value in document.items():
        if key in fields:
            for inner in _structs(fields[key]):
                if isinstance(value, dict) and inner.cls.__struct_config__.forbid_unknown_fields:
                    yield from _unknown(value, inner, f"{path}{key}.", ())
        elif key not in sections:
            yield _sentence(key, path, (*fields, *sections))


def _structs(kind: inspect.Type) -> Iterator[inspect.StructType]:
    if isinstance(kind, inspect.StructType):
        yield kind
    elif isinstance(kind, inspect.UnionType):
        yield from (each for each in kind.types if isinstance(each, inspect.StructType))


def _sentence(key: str, path: str, known: Collection[str]) -> str:
    near = nearest(key, known)
    hint = f"did you mean {path}{near}?" if near else f"possible are {', '.join(sorted(known))}"
    return f"there is no key {path}{key}: {hint}"


def nearest(key: str, known: Collection[str]) -> str:
    """Return the one of *known* that *key* was probably meant to be; empty if none is near."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(key.lower(), by_lower, 1)
    return by_lower[near[0]] if near else ""
