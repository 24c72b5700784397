from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.schema import AttachRequested, DetachRequested, RequestId, Unknown, decode
from reconciler.history.redact import redacted, without_secrets
from tests.support.stories.node import Node, busy_day
from tests.support.stories.values import ETH0, SECRET

LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner)
)


def shown(config: str, args: str = "") -> dict[str, str]:
    asked = AttachRequested(request=RequestId("r"), ifname=ETH0, netns="/n", config=config, args=args)
    return json.loads(redacted(Node().event(asked, "a")))["data"]


def test_a_redacted_event_decodes_and_keeps_other_values() -> None:
    for event in busy_day(15):
        text = redacted(event)
        assert SECRET.encode() not in text
        assert decode(text).id == event.id
        assert decode(text).type == event.type


@pytest.mark.parametrize("key", ["token", "apiToken", "PASSWORD", "passwd", "client_secret", "privateKey", "key"])
def test_values_of_secret_looking_keys_are_hidden(key: str) -> None:
    config = shown(json.dumps({"type": "x", "deep": [{key: "hunter2"}], "mtu": 9000}))["config"]
    assert json.loads(config) == {"type": "x", "deep": [{key: "(redacted)"}], "mtu": 9000}


@pytest.mark.parametrize("value", [["hunter2"], {"value": "hunter2"}, 271828, 1])
def test_secrets_other_than_text_are_hidden_too(value: object) -> None:
    assert json.loads(shown(json.dumps({"secret": value}))["config"]) == {"secret": "(redacted)"}


def test_booleans_and_absent_secrets_are_shown() -> None:
    config = {"keyed": True, "token": None, "secret": ""}
    assert json.loads(shown(json.dumps(config))["config"]) == config


@pytest.mark.parametrize(
    "config",
    [
        '{"password": "hunter2"',
        '{"a": 1, "password" : "hunter2 hunter2", }',
        "{'password': 'hunter2'}",
        json.dumps('{"password": "hunter2"')[:-1],
        "password=hunter2",
    ],
)
def test_malformed_json_is_searched_as_text(config: str) -> None:
    assert "hunter2" not in shown(config)["config"]


def test_arguments_lose_only_the_value() -> None:
    assert shown("{}", "K8S_POD_NAME=web;AUTH_TOKEN=hunter2;MAC=02:00:00:00:00:01")["args"] == (
        "K8S_POD_NAME=web;AUTH_TOKEN=(redacted);MAC=02:00:00:00:00:01"
    )


def test_a_too_deeply_nested_text_is_hidden() -> None:
    assert "hunter2" not in shown('{"a":' * 3000 + '{"password": "hunter2"}' + "}" * 3000)["config"]


def test_events_of_unknown_types_are_redacted_too() -> None:
    event = Node().event(Unknown(type="New", version=1, data=msgspec.Raw(b'{"x": {"token": "hunter2"}}')))
    assert json.loads(redacted(event))["data"] == {"x": {"token": "(redacted)"}}


@given(TREES, st.integers(0, 3))
def test_a_secret_is_found_at_any_depth_of_nested_texts(tree: object, layers: int) -> None:
    value: object = {"x": [tree, {"password": SECRET}]}
    for _ in range(layers):
        value = {"inner": json.dumps(value)}
    event = Node().event(DetachRequested(request=RequestId("r"), ifname=ETH0, config=json.dumps(value)))
    assert SECRET.encode() not in redacted(event)


def test_sentences_without_secrets_are_unchanged() -> None:
    sentence = "network default/storage: plugin bridge failed: no free address in 10.0.0.0/24"
    assert without_secrets(sentence) == sentence
