from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeworker.plugins.spec.conflist import (
    ConfigError,
    parse,
    render,
    unsupported_capabilities,
    with_prev_result,
    without_runtime_config,
)

LONG = 1024 * 1024

CHAIN = {
    "cniVersion": "1.0.0",
    "name": "net",
    "plugins": [
        {"type": "bridge", "capabilities": {"mac": True, "ips": False}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


def rendered(config: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    return [json.loads(text) for text in render(parse(config), **options)]


def test_single_configuration_becomes_list_of_one() -> None:
    config = parse('{"cniVersion":"0.3.1","name":"net","type":"macvlan","master":"eth0"}')
    assert (config.name, config.cni_version) == ("net", "0.3.1")
    assert config.plugins == ({"cniVersion": "0.3.1", "name": "net", "type": "macvlan", "master": "eth0"},)


def test_single_configuration_may_own_a_key_named_plugins() -> None:
    assert parse({"name": "net", "type": "meta", "plugins": ["theirs"]}).plugins[0]["plugins"] == ["theirs"]


def test_list_keeps_plugins_in_order() -> None:
    assert [plugin["type"] for plugin in parse(json.dumps(CHAIN)).plugins] == ["bridge", "portmap"]


@pytest.mark.parametrize("name", ["", None])
def test_missing_name_is_filled_in(name: str | None) -> None:
    config = {"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "bridge"}]}
    assert parse(config, default_name="nad").name == "nad"
    assert json.loads(render(parse(config, default_name="nad"))[0])["name"] == "nad"


@pytest.mark.parametrize(
    ("value", "switched"), [(True, True), (False, False), ("true", True), ("False", False), (None, False)]
)
def test_switches_may_be_booleans_or_strings(value: object, switched: bool) -> None:
    config = parse({**CHAIN, "disableCheck": value, "disableGC": value})
    assert (config.disable_check, config.disable_gc) == (switched, switched)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ({"name": "net"}, "neither type nor plugins"),
        ({"type": "bridge"}, "has no name"),
        ({"name": "-net", "type": "bridge"}, '"-net"'),
        ({"name": "net/1", "type": "bridge"}, '"net/1"'),
        ({"name": "net\n", "type": "bridge"}, r'"net\\n"'),
        ({"name": "n" * 256, "type": "bridge"}, "longer than 255 characters"),
        ({"name": 5, "type": "bridge"}, "name of the configuration is not a string"),
        ({"name": "net", "type": 5}, "type of the configuration is not a string"),
        ({"name": "net", "plugins": []}, "at least one plugin"),
        ({"name": "net", "plugins": {}}, "at least one plugin"),
        ({"name": "net", "plugins": [{"type": "a"}, "b"]}, r'plugins\[1\] is "\\"b\\"", which is not a JSON object'),
        ({"name": "net", "plugins": [{"type": "a"}, {}]}, r"plugins\[1\] has no type: it is empty"),
        (
            {"name": "net", "plugins": [{"type": "a"}, {"mtu": 1, "tpye": "b"}, {"type": "c"}]},
            r'plugins\[1\] has no type: it has the key "tpye"; did you mean type\?',
        ),
        (
            {"name": "net", "plugins": [{"type": "", "mode": "l2", "mtu": 1}]},
            r"plugins\[0\] has no type: its type is empty",
        ),
        (
            {"name": "net", "plugins": [{"mode": "l2", "mtu": 1}]},
            r'plugins\[0\] has no type: its keys are "mode, mtu"',
        ),
        ({"name": "net", "plugin": []}, 'it has the key "plugin"; did you mean plugins\\?'),
        ({"name": "net", "plugins": [{"type": "a"}, {"type": 5}]}, r"type of plugins\[1\] is not a string"),
        ({"name": "net", "plugins": [{"type": "a"}, {"type": "../b"}]}, r'type of plugins\[1\] is "../b", which'),
        (
            {"name": "net", "plugins": [{"type": "a"}, {"type": "b", "ipam": {"type": "/c"}}]},
            r'ipam.type of plugins\[1\] \("b"\) is "/c"',
        ),
        (
            {"name": "net", "plugins": [{"type": "a"}, {"type": "b", "capabilities": {"ips": True, "mac": "yes"}}]},
            r'capabilities.mac of plugins\[1\] \("b"\) is neither true nor false',
        ),
        ({"name": "net", "plugins": [{"type": "a", "args": {"cni": []}}]}, r'cni of args of plugins\[0\] \("a"\)'),
        ({"name": "net", "type": "../bridge"}, "bare name"),
        ({"name": "net", "type": "/bin/sh"}, "bare name"),
        ({"name": "net", "type": "."}, "bare name"),
        ({"name": "net", "type": ".."}, "bare name"),
        ({"name": "net", "type": "bri\0dge"}, "bare name"),
        ({"name": "net", "type": "plumbline"}, "would call itself"),
        ({"name": "net", "type": "bridge", "ipam": {"type": "../evil"}}, "ipam.type"),
        ({"name": "net", "type": "bridge", "ipam": {"type": "plumbline"}}, "would call itself"),
        ({"name": "net", "type": "bridge", "ipam": "host-local"}, "ipam of the configuration"),
        ({"name": "net", "type": "bridge", "capabilities": {"mac": "true"}}, "capabilities.mac of the configuration"),
        ({"name": "net", "type": "bridge", "capabilities": ["mac"]}, "capabilities of the configuration"),
        ({"name": "net", "type": "bridge", "args": []}, "args of the configuration"),
        ({"name": "net", "type": "bridge", "args": {"cni": 1}}, "cni of args of the configuration"),
        ({"name": "net", "type": "bridge", "cniVersion": "7.0.0"}, "7.0.0 is not supported"),
        ({"name": "net", "type": "bridge", "cniVersion": 1}, "cniVersion of the configuration"),
        ({"name": "net", "type": "bridge", "cniVersions": "1.0.0"}, "cniVersions"),
        ({"name": "net", "type": "bridge", "cniVersions": [1]}, "cniVersions"),
        ({"name": "net", "type": "bridge", "disableCheck": "yes"}, "disableCheck"),
        ({"name": "net", "type": "bridge", "disableGC": 1}, "disableGC"),
    ],
)
def test_unusable_configuration_is_refused_in_one_sentence(config: str | dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as raised:
        parse(config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "config",
    [
        {"name": "/" * LONG, "type": "bridge"},
        {"name": "net", "type": "x" * LONG},
        {"name": "net", "plugins": [{"type": "x" * LONG}]},
        {"name": "net", "type": "bridge", "ipam": {"type": "x" * LONG}},
        {"name": "net", "type": "bridge", "cniVersion": "9" * LONG},
        {"name": "net", "type": "bridge", "cniVersions": ["9"] * LONG},
    ],
    ids=["name", "type", "type in a list", "ipam", "cniVersion", "cniVersions"],
)
def test_sentence_is_short_however_long_the_text_that_it_complains_of(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(config)
    assert len(str(raised.value)) < 300


def test_empty_ipam_and_nulls_are_no_error() -> None:
    plugin = {"name": "net", "type": "bridge", "ipam": {}, "capabilities": None, "args": None}
    assert rendered(plugin, cni_args={"a": 1})[0]["args"] == {"cni": {"a": 1}}


def test_own_types_are_the_callers_choice() -> None:
    with pytest.raises(ConfigError, match="would call itself"):
        parse({"name": "net", "type": "multus"}, own_types=frozenset({"plumbline", "multus"}))


def test_name_and_version_of_the_list_are_given_to_every_plugin() -> None:
    config = {"name": "net", "cniVersions": ["0.4.0", "1.0.0"], "plugins": [{"type": "a", "name": "x"}, {"type": "b"}]}
    assert [(plugin["name"], plugin["cniVersion"]) for plugin in rendered(config)] == [("net", "1.0.0")] * 2


def test_unknown_keys_keep_value_and_order() -> None:
    config = (
        '{"zeta":[1,2.5,null],"cniVersion":"1.0.0","name":"net","type":"x","alpha":{"b":1,"a":123456789012345678901}}'
    )
    assert render(parse(config)) == (config,)


AS_WRITTEN = (
    '"exponent":1.4e3,"whole":1.0,"short":1e3,"large":9007199254740993,"larger":123456789012345678901234567890,'
    '"zero":-0,"real":1.50E+02,"escaped":"\\u0041\\/\\u00e9","nested":{"b":[1.0,{"k":1,"k":2.0}],"a":null}'
)


@pytest.mark.parametrize(
    "config",
    [
        f'{{"cniVersion":"1.0.0","name":"net","type":"x",{AS_WRITTEN}}}',
        f'{{"cniVersion":"1.0.0","name":"net","plugins":[{{"type":"y"}},{{"type":"x",{AS_WRITTEN}}}]}}',
        f'{{"cniVersion":"1.0.0","name":"net","type":"x",{AS_WRITTEN}}}'.replace(",", " ,\n ").replace(":{", ": {\t"),
    ],
)
def test_the_bytes_of_every_key_are_passed_on(config: str) -> None:
    plugin = render(parse(config), device="d", cni_args={"a": msgspec.Raw(b"2.0")})[-1]
    assert AS_WRITTEN in plugin
    assert '"args":{"cni":{"a":2.0}}' in plugin
    assert AS_WRITTEN in with_prev_result(plugin, '{"x":1.0}').decode()
    assert AS_WRITTEN in without_runtime_config(plugin, {"cni.dev/valid-attachments": []}).decode()


def test_the_bytes_of_arguments_are_passed_on_beside_new_ones() -> None:
    config = '{"name":"net","type":"x","args":{"o":1.0,"cni":{"a":1.0,"b":1e3}},"capabilities":{"c":true}}'
    (plugin,) = render(
        parse(config), cni_args={"a": msgspec.Raw(b"-0")}, capability_args={"c": msgspec.Raw(b"[1.0]"), "d": 1}
    )
    assert '"args":{"o":1.0,"cni":{"a":-0,"b":1e3}}' in plugin
    assert '"runtimeConfig":{"c":[1.0]}' in plugin


def test_the_last_of_two_equal_keys_counts() -> None:
    (plugin,) = render(parse('{"name":"net","type":"a","mtu":1.0,"type":"b","mtu":2.0}'))
    assert '"type":"b","mtu":2.0' in plugin
    assert "1.0" not in plugin.replace('"cniVersion":"0.1.0"', "")


def test_runtime_config_has_only_what_a_plugin_declares() -> None:
    offered = {"mac": "02:00:00:00:00:01", "ips": ["10.0.0.1/24"], "portMappings": [{"hostPort": 80}]}
    bridge, portmap = rendered(CHAIN, capability_args=offered)
    assert bridge["runtimeConfig"] == {"mac": offered["mac"]}
    assert portmap["runtimeConfig"] == {"portMappings": offered["portMappings"]}


def test_no_runtime_config_when_nothing_declared_is_offered() -> None:
    assert all("runtimeConfig" not in plugin for plugin in rendered(CHAIN, capability_args={"dns": {}}))


def test_cni_args_win_over_what_is_there() -> None:
    plugin = {"name": "net", "type": "x", "args": {"labels": 1, "cni": {"a": "old", "b": "kept"}}}
    assert rendered(plugin, cni_args={"a": "new"})[0]["args"] == {"labels": 1, "cni": {"a": "new", "b": "kept"}}


def test_device_reaches_every_plugin_and_the_capability() -> None:
    config = {"name": "net", "plugins": [{"type": "sriov", "capabilities": {"deviceID": True}}, {"type": "tuning"}]}
    sriov, tuning = rendered(config, device="0000:03:02.1")
    assert (sriov["deviceID"], sriov["pciBusID"]) == ("0000:03:02.1", "0000:03:02.1")
    assert (tuning["deviceID"], tuning["pciBusID"]) == ("0000:03:02.1", "0000:03:02.1")
    assert sriov["runtimeConfig"] == {"deviceID": "0000:03:02.1"}
    assert "runtimeConfig" not in tuning


def test_rendering_leaves_the_configuration_as_it_was() -> None:
    config = parse(CHAIN)
    before = json.dumps(config.plugins)
    render(config, capability_args={"mac": "m"}, cni_args={"a": 1}, device="d")
    assert json.dumps(config.plugins) == before


def test_unsupported_capabilities_are_named_in_the_order_wanted() -> None:
    wanted = ["portMappings", "ips", "mac", "bandwidth"]
    assert unsupported_capabilities(parse(CHAIN), wanted) == ("ips", "bandwidth")


def test_previous_result_of_a_configuration_is_dropped() -> None:
    assert "prevResult" not in rendered({"name": "net", "type": "x", "prevResult": {"ips": []}})[0]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=10,
)
_RUNTIMES = {"prevResult", "args", "capabilities", "ipam", "plugins", "cniVersions", "disableCheck", "disableGC"}


@given(st.dictionaries(st.text().filter(lambda key: key not in _RUNTIMES), _json), _json)
def test_any_plugin_key_survives_and_previous_result_is_spliced(extra: dict[str, Any], previous: Any) -> None:
    plugin = {**extra, "name": "net", "type": "x", "cniVersion": "1.0.0"}
    (text,) = render(parse(json.dumps(plugin)))
    assert json.loads(text) == plugin
    assert json.loads(with_prev_result(text, None)) == plugin
    assert json.loads(with_prev_result(text, json.dumps(previous))) == {**plugin, "prevResult": previous}


@given(st.text() | _json.map(json.dumps) | st.dictionaries(st.sampled_from(sorted(_RUNTIMES)), _json).map(json.dumps))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        render(parse(text, default_name="net"))
