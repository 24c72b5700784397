"""Every event that was ever written stays readable, field by field."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events import schema, upcast
from events.schema import (
    TYPES,
    Event,
    MalformedEventError,
    Unknown,
    WorkerStopped,
    decode,
    encode,
    new_event_id,
    rfc3339,
    unix_ns,
)

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*.v*.json"))
MAX_NS = 253_402_300_799_999_999_999  # the end of the year 9999
ENVELOPE = {"id", "type", "v", "at", "node", "boot_id", "epoch", "sandbox", "cause", "trace", "data"}
SMALLEST = {"id": "i", "type": "WorkerStopped", "v": 1, "at": "t", "node": "n", "data": {"reason": "r"}}


def text_of(**changes: Any) -> bytes:
    return json.dumps({**SMALLEST, **changes}).encode()


# --- golden files ----------------------------------------------------------------------------------------------------


def test_every_version_of_every_type_has_a_golden_file() -> None:
    """A new type or version needs a golden file. A released file may only be extended."""
    released = {f"{name}.v{version}.json" for name in TYPES for version in range(1, upcast.CURRENT.get(name, 1) + 1)}
    assert {file.name for file in FILES} == released


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_golden_file_sets_every_field_of_its_type(file: Path) -> None:
    """Of the current version: a field that it omits would not be tested."""
    golden = json.loads(file.read_bytes())
    if golden["v"] == upcast.CURRENT.get(golden["type"], 1):
        assert golden.keys() == ENVELOPE
        _assert_filled(golden["data"], TYPES[golden["type"]], file.stem)


def _assert_filled(value: Any, kind: type[msgspec.Struct], where: str) -> None:
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    assert value.keys() == fields.keys(), where
    for name, inner in fields.items():
        assert name == "exit_code" or value[name] not in ("", [], None, 0, False), f"{where}.{name}"
        kinds = [
            t for t in (inner, *getattr(inner, "__args__", ())) if isinstance(t, type) and issubclass(t, msgspec.Struct)
        ]
        for struct in kinds:
            for item in value[name] if isinstance(value[name], list) else [value[name]]:
                _assert_filled(item, struct, f"{where}.{name}")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_golden_file_is_read_and_written_unchanged(file: Path) -> None:
    golden = json.loads(file.read_bytes())
    event = decode(file.read_bytes())
    assert type(event.data) is TYPES[golden["type"]]
    for name in ENVELOPE - {"type", "v", "data"}:
        assert getattr(event, name) == golden[name]
    assert event.type == golden["type"]
    if golden["v"] == upcast.CURRENT.get(golden["type"], 1):
        assert json.loads(msgspec.json.encode(event.data)) == golden["data"]
        assert json.loads(encode(event)) == golden


# --- tolerance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_fields_of_a_later_release_are_ignored(file: Path) -> None:
    golden = json.loads(file.read_bytes())
    later = {**golden, "shard": 3, "data": {**golden["data"], "since": {"later": True}}}
    assert decode(json.dumps(later).encode()) == decode(file.read_bytes())


def test_unknown_error_class_leaves_its_event_readable() -> None:
    golden = json.loads((GOLDEN / "AttachFailed.v1.json").read_bytes())
    golden["data"]["failure"] |= {"error_class": "made_up_later", "phase": "another"}
    data = decode(json.dumps(golden).encode()).data
    assert isinstance(data, schema.AttachFailed)
    assert (data.failure.error_class, data.failure.phase) == (schema.ErrorClass.UNKNOWN, schema.Phase.UNKNOWN)
    assert data.failure.message == golden["data"]["failure"]["message"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_fields_that_have_a_default_may_be_missing(file: Path) -> None:
    golden = json.loads(file.read_bytes())
    required = {f.encode_name for f in msgspec.structs.fields(TYPES[golden["type"]]) if f.required}
    data = {name: value for name, value in golden["data"].items() if name in required}
    least = {name: golden[name] for name in ("id", "type", "v", "at", "node")} | {"data": data}
    event = decode(json.dumps(least).encode())
    assert (event.sandbox, event.cause, event.epoch) == ("", "", 0)
    assert json.loads(msgspec.json.encode(event.data)) == data


@pytest.mark.parametrize(
    ("name", "version"), [("NeverHeardOf", 1), ("WorkerStopped", 2), ("WorkerStopped", 0), ("", -1)]
)
def test_unknown_type_or_version_is_preserved(name: str, version: int) -> None:
    data = '{"b":1.50,"a":[ 1,2 ],"\\u00e9":null}'
    text = f'{{"id":"i","type":"{name}","v":{version},"at":"t","node":"n","data":{data}}}'.encode()
    event = decode(text)
    assert isinstance(event.data, Unknown)
    assert (event.type, event.data.version, bytes(event.data.data)) == (name, version, data.encode())
    again = encode(event)
    assert data.encode() in again
    assert decode(again) == event


@given(st.sampled_from(FILES), st.data())
def test_truncated_text_is_malformed(file: Path, data: st.DataObject) -> None:
    whole = file.read_bytes().strip()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(MalformedEventError):
        decode(whole[:cut])


@given(st.sampled_from(FILES), st.integers(0, 10_000), st.binary(min_size=1, max_size=4))
def test_changed_bytes_are_an_event_or_malformed(file: Path, place: int, noise: bytes) -> None:
    text = bytearray(file.read_bytes())
    place %= len(text)
    text[place : place + len(noise)] = noise
    _decode_or_malformed(bytes(text))


@given(st.binary() | st.text().map(str.encode))
@example(b"")
@example(b"null")
@example(b"[1]")
@example(b'"\xff"')
@example(b'{"a":' * 5000)
@example(text_of(data=None))
@example(text_of(data=[]))
@example(text_of(v="1"))
@example(text_of(v=10**30))
@example(text_of(v=-(10**30)))
@example(text_of(node=None))
@example(b'{"id":"i","type":"X","v":1,"at":"t","node":"n","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
@example(text_of(data={"reason": "r"}) + b"garbage")
@example(b'{"id":"\\ud800","type":"X","v":1,"at":"t","node":"n","data":{}}')
def test_any_bytes_are_an_event_or_malformed(text: bytes) -> None:
    _decode_or_malformed(text)


def _decode_or_malformed(text: bytes) -> None:
    try:
        event = decode(text)
    except MalformedEventError:
        return
    assert decode(encode(event)) == event


# --- older versions --------------------------------------------------------------------------------------------------


def _to_v2(data: dict[str, Any]) -> dict[str, Any]:
    return {"why": data["cause"]}


def _to_v3(data: dict[str, Any]) -> dict[str, Any]:
    return {"reason": data["why"].lower()}


STEPS: Mapping[tuple[str, int], upcast.Step] = {("WorkerStopped", 1): _to_v2, ("WorkerStopped", 2): _to_v3}


@pytest.fixture
def two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """WorkerStopped as if it were at version 3."""
    monkeypatch.setattr(upcast.lift, "__defaults__", (STEPS,))
    monkeypatch.setattr(upcast, "CURRENT", {"WorkerStopped": 3})


@pytest.mark.usefixtures("two_steps")
@pytest.mark.parametrize(
    ("version", "data"), [(1, {"cause": "SIGTERM"}), (2, {"why": "SIGTERM"}), (3, {"reason": "sigterm"})]
)
def test_older_versions_are_lifted_step_by_step(version: int, data: dict[str, str]) -> None:
    event = decode(text_of(v=version, data=data))
    assert event.data == WorkerStopped(reason="sigterm")
    assert json.loads(encode(event))["v"] == 3


@pytest.mark.usefixtures("two_steps")
@pytest.mark.parametrize("data", [{}, [], 7, {"cause": 7}, None])
def test_older_version_that_does_not_fit_its_step_is_malformed(data: object) -> None:
    with pytest.raises(MalformedEventError):
        decode(text_of(v=1, data=data))


def test_lift_does_not_change_the_newest_version_or_other_types() -> None:
    assert upcast.lift("WorkerStopped", 3, {"reason": "x"}, STEPS) == {"reason": "x"}
    assert upcast.lift("WorkerStarted", 1, {"pid": 1}, STEPS) == {"pid": 1}


def test_every_released_version_has_a_path_to_the_current_one() -> None:
    assert upcast.CURRENT.keys() <= TYPES.keys()
    for name, current in upcast.CURRENT.items():
        assert current == 1 + max(version for step, version in upcast.STEPS if step == name)
        for version in range(1, current):
            assert (name, version) in upcast.STEPS


# --- identifiers and times -------------------------------------------------------------------------------------------


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_event_ids_are_uuids_of_version_7(unix_ms: int, entropy: bytes) -> None:
    value = uuid.UUID(new_event_id(unix_ms, entropy))
    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert value.int >> 80 == unix_ms
    kept = value.int & ((1 << 62) - 1) | (value.int >> 64 & 0xFFF) << 64
    assert kept == int.from_bytes(entropy, "big") & ((0xFFF << 64) | (1 << 62) - 1)


@given(st.integers(0, 2**48 - 2), st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_event_ids_are_ordered_by_their_time(unix_ms: int, one: bytes, other: bytes) -> None:
    assert new_event_id(unix_ms, one) < new_event_id(unix_ms + 1, other)


@given(st.integers(0, MAX_NS))
def test_times_round_trip_to_the_nanosecond(nanoseconds: int) -> None:
    assert unix_ns(rfc3339(nanoseconds)) == nanoseconds


@given(st.integers(0, MAX_NS), st.integers(0, MAX_NS))
def test_times_are_ordered_as_text(one: int, other: int) -> None:
    assert (rfc3339(one) < rfc3339(other)) == (one < other)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("2026-01-02T03:04:05.000000007Z", 1767323045000000007),
    ],
)
def test_times_may_have_fewer_digits(text: str, nanoseconds: int) -> None:
    assert unix_ns(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00.xZ"])
def test_invalid_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whatever sentence the standard library has for it
        unix_ns(text)


def test_the_table_names_every_event_type_of_the_schema() -> None:
    classes = {each for each in vars(schema).values() if isinstance(each, type) and issubclass(each, schema.Data)}
    kinds = {each for each in classes if each.__module__ == schema.Data.__module__}
    assert classes - kinds - {Unknown} == {*TYPES.values()}
    assert all(cls.__name__ == name for name, cls in TYPES.items())
    assert not schema.INTENTS - TYPES.keys()
    assert schema.COMMANDS < schema.INTENTS


def test_every_kind_has_an_event_type() -> None:
    for kind in (schema.Intent, schema.Command, schema.Decision, schema.Effect, schema.Outcome):
        assert schema.types_of(kind), kind
    assert schema.types_of(schema.Data) == {*TYPES.values()}


def test_events_are_comparable() -> None:
    event = decode(text_of())
    assert isinstance(event, Event)
    assert event == decode(text_of())
    assert event != decode(text_of(id="other"))
