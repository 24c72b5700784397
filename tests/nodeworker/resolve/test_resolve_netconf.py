"""The runtime's configuration over the worker's: which key wins, and what is refused with which CNI code."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.schema import ErrorClass
from nodeworker.delegates.versions import SUPPORTED
from nodeworker.errors import RequestFailedError
from nodeworker.resolve.netconf import NodeDefaults, parse_netconf, version_asked

BRIDGE = {"name": "podnet", "type": "bridge"}
NO_DEFAULTS = NodeDefaults()


def text(**keys: Any) -> str:
    return json.dumps({"cniVersion": "1.0.0", "name": "plumbline", "type": "plumbline", **keys})


def test_defaults_are_those_of_multus() -> None:
    conf = parse_netconf(text(delegates=[BRIDGE]), NO_DEFAULTS)
    assert (conf.conf_dir, conf.bin_dir, conf.multus_namespace) == (
        "/etc/cni/multus/net.d",
        "/opt/cni/bin",
        "kube-system",
    )
    assert conf.system_namespaces == ("kube-system",)
    assert conf.shared_namespaces == {"default"}
    assert not conf.namespace_isolation
    assert conf.runtime_config == {}


def test_every_key_of_the_runtime_wins() -> None:
    defaults = NodeDefaults(
        cluster_network="worker",
        default_networks=("w",),
        conf_dir="/w",
        bin_dir="/w",
        multus_namespace="w",
        namespace_isolation=True,
    )
    conf = parse_netconf(
        text(
            clusterNetwork="given",
            defaultNetworks=["g"],
            confDir="/g",
            binDir="/g",
            multusNamespace="g",
            namespaceIsolation=False,
            globalNamespaces="a, b ,",
            systemNamespaces=[],
            runtimeConfig={"portMappings": []},
            logLevel="debug",
        ),
        defaults,
    )
    assert (conf.cluster_network, conf.default_networks, conf.conf_dir, conf.bin_dir) == ("given", ("g",), "/g", "/g")
    assert (conf.multus_namespace, conf.namespace_isolation, conf.system_namespaces) == ("g", False, ())
    assert conf.shared_namespaces == {"a", "b"}
    assert conf.runtime_config == {"portMappings": []}


@pytest.mark.parametrize("nothing", [None, ""])
def test_key_that_is_null_or_empty_leaves_the_worker_its_own(nothing: str | None) -> None:
    conf = parse_netconf(text(clusterNetwork=nothing, globalNamespaces=nothing), NodeDefaults(cluster_network="podnet"))
    assert (conf.cluster_network, conf.global_namespaces) == ("podnet", "default")


def test_delegates_of_the_runtime_replace_a_cluster_network_of_the_worker() -> None:
    conf = parse_netconf(text(delegates=[BRIDGE]), NodeDefaults(cluster_network="podnet"))
    assert (conf.cluster_network, conf.delegates) == ("", (BRIDGE,))


def test_cluster_network_of_the_runtime_replaces_delegates_of_the_worker() -> None:
    conf = parse_netconf(text(clusterNetwork="podnet", delegates=[]), NodeDefaults(delegates=(BRIDGE,)))
    assert (conf.cluster_network, conf.delegates) == ("podnet", ())


def test_empty_delegates_leave_the_worker_its_own() -> None:
    assert parse_netconf(text(delegates=[]), NodeDefaults(delegates=(BRIDGE,))).delegates == (BRIDGE,)


def test_missing_version_is_the_oldest() -> None:
    assert parse_netconf('{"name": "n", "clusterNetwork": "c"}', NO_DEFAULTS).cni_version == "0.1.0"


@pytest.mark.parametrize(
    ("config", "error_class", "code", "why"),
    [
        ("", ErrorClass.INVALID_CONFIG, 6, ""),
        ('{"name": ', ErrorClass.INVALID_CONFIG, 6, "truncated"),
        ("[]", ErrorClass.INVALID_CONFIG, 6, "no JSON object"),
        ("[" * 100_000, ErrorClass.INVALID_CONFIG, 6, "nested"),
        (text(cniVersion="2.0.0"), ErrorClass.UNSUPPORTED_VERSION, 1, '"2.0.0"'),
        (text(cniVersion=["1.0.0"]), ErrorClass.UNSUPPORTED_VERSION, 1, "1.0.0"),
        ('{"cniVersion": "9.9.9"}', ErrorClass.UNSUPPORTED_VERSION, 1, "9.9.9"),
        ('{"clusterNetwork": "c"}', ErrorClass.INVALID_CONFIG, 7, "`name`"),
        (text(name="", clusterNetwork="c"), ErrorClass.INVALID_CONFIG, 7, "`name`"),
        (text(), ErrorClass.INVALID_CONFIG, 7, "clusterNetwork or delegates"),
        (text(kubeconfig="/etc/k"), ErrorClass.INVALID_CONFIG, 7, "clusterNetwork or delegates"),
        (text(delegates={"type": "bridge"}), ErrorClass.INVALID_CONFIG, 7, "$.delegates"),
        (text(delegates=["bridge"]), ErrorClass.INVALID_CONFIG, 7, "$.delegates[0]"),
        (text(clusterNetwork="c", namespaceIsolation="true"), ErrorClass.INVALID_CONFIG, 7, "$.namespaceIsolation"),
        (text(clusterNetwork="c", runtimeConfig=[]), ErrorClass.INVALID_CONFIG, 7, "$.runtimeConfig"),
    ],
)
def test_unusable_configuration_is_refused(config: str, error_class: ErrorClass, code: int, why: str) -> None:
    with pytest.raises(RequestFailedError) as caught:
        parse_netconf(config, NO_DEFAULTS)
    failure = caught.value.failure
    assert (failure.error_class, failure.code) == (error_class, code)
    assert why in failure.message


@pytest.mark.parametrize(
    ("config", "version"),
    [
        (text(), "1.0.0"),
        ('{"cniVersion": "0.3.1"}', "0.3.1"),
        ("{}", "0.1.0"),
        ('{"cniVersion": "7.0.0"}', "1.1.0"),
        ('{"cniVersion": 7}', "1.1.0"),
        ("no json", "1.1.0"),
    ],
)
def test_errors_are_reported_in_the_version_asked_for(config: str, version: str) -> None:
    assert version_asked(config) == version


@settings(deadline=None)
@given(
    st.text()
    | st.dictionaries(st.sampled_from(["cniVersion", "name", "delegates", "clusterNetwork"]), st.text()).map(json.dumps)
)
def test_any_text_is_read_or_refused(config: str) -> None:
    code = 0
    try:
        parse_netconf(config, NO_DEFAULTS)
    except RequestFailedError as error:
        code = error.failure.code
    assert code in {0, 1, 6, 7}
    assert version_asked(config) in SUPPORTED
