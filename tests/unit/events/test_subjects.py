"""Every name has its own token, and filters match as in NATS."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events import subjects
from events.subjects import matches

NAMES = st.text(st.characters(codec=None), min_size=1, max_size=40) | st.sampled_from(
    ["-", "--", ".", "*", ">", "=", "=2D", "a.b", "a b", "é", "\udcc3\udca9", "\ud800", "\n", "node-1.example.net"]
)
_TOKEN = re.compile(r"[A-Za-z0-9_\-=]+")


@given(NAMES)
def test_every_name_round_trips_through_its_token(name: str) -> None:
    token = subjects.token(name)
    assert _TOKEN.fullmatch(token)
    assert token != "-"
    assert subjects.name_of(token) == name


@given(NAMES, NAMES)
@example("é", "\udcc3\udca9")  # the same bytes, were the second written as Python writes undecodable file names
@example("-", "=2D")
def test_different_names_have_different_tokens(one: str, other: str) -> None:
    assert (subjects.token(one) == subjects.token(other)) == (one == other)


@given(NAMES | st.just(""), NAMES | st.just(""), NAMES)
def test_parse_is_the_inverse_of_subject(node: str, sandbox: str, event_type: str) -> None:
    text = subjects.subject(node, sandbox, event_type)
    assert len(text.split(".")) == 5
    assert subjects.parse(text) == (node, sandbox, event_type)


@given(NAMES | st.just(""), NAMES | st.just(""), st.data())
def test_pattern_matches_only_subjects_with_its_parts(node: str, sandbox: str, data: st.DataObject) -> None:
    parts = (node, sandbox, "AttachRequested")
    wanted = tuple(data.draw(st.sampled_from([None, part, "other"])) for part in parts)
    expected = all(want in (None, part) for want, part in zip(wanted, parts, strict=True))
    assert matches(subjects.subject(*parts), subjects.pattern(*wanted)) == expected


def test_names_without_special_bytes_stay_readable() -> None:
    assert subjects.subject("node-1", "0a1b2c", "GcFailed") == "plumbline.ev.node-1.0a1b2c.GcFailed"
    assert subjects.subject("node-1.example", "", "GcFailed") == "plumbline.ev.node-1=2Eexample.-.GcFailed"
    assert subjects.subject("", "0a1b2c", "StatusPublished") == "plumbline.ev.-.0a1b2c.StatusPublished"


def test_node_events_differ_from_a_sandbox_named_dash() -> None:
    assert subjects.subject("n", "", "X") != subjects.subject("n", "-", "X")
    assert not matches(subjects.subject("n", "-", "X"), subjects.pattern("n", ""))


def test_empty_name_has_no_token() -> None:
    with pytest.raises(ValueError, match="empty"):
        subjects.subject("n", "s", "")


@pytest.mark.parametrize(
    "text", ["", "plumbline.ev.n.s", "plumbline.cmd.n.s.X", "plumbline.ev.n.s.X.y", "plumbline.ev.=FF.s.X"]
)
def test_parse_refuses_other_subjects(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # UnicodeDecodeError is one
        subjects.parse(text)
