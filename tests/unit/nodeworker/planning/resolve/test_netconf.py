"""The runtime's configuration over the worker's: which value wins, and which error has which CNI code."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.schema import ErrorClass
from nodeworker.errors import RequestFailedError
from nodeworker.planning.resolve.netconf import (
    LogOptions,
    NodeDefaults,
    logging_of,
    parse_defaults,
    parse_netconf,
    requested_version,
    unknown_netconf_keys,
)
from nodeworker.plugins.spec.versions import SUPPORTED

BRIDGE = {"name": "podnet", "type": "bridge"}
AS_WRITTEN = {key: msgspec.Raw(json.dumps(value).encode()) for key, value in BRIDGE.items()}
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
    assert conf.runtime_config == {"portMappings": msgspec.Raw(b"[]")}


def test_keys_ignore_case() -> None:
    conf = parse_netconf(text(CLUSTERNETWORK="podnet", readinessIndicatorFile="/run/ready"), NO_DEFAULTS)
    assert (conf.cluster_network, conf.readiness_file) == ("podnet", "/run/ready")
    both = parse_netconf(text(clusterNetwork="exact", clusternetwork="other"), NO_DEFAULTS)
    assert both.cluster_network == "exact"


def test_the_workers_own_keys_are_read_like_a_runtimes() -> None:
    keys = {"ClusterNetwork": "podnet", "binDir": None, "globalNamespaces": "", "cniDir": "/x", "bogus": 1}
    assert parse_defaults(keys) == NodeDefaults(cluster_network="podnet")
    with pytest.raises(ValueError, match=r"\$\.delegates"):
        parse_defaults({"delegates": "bridge"})


@pytest.mark.parametrize("nothing", [None, ""])
def test_null_or_empty_key_keeps_the_workers_value(nothing: str | None) -> None:
    conf = parse_netconf(text(clusterNetwork=nothing, globalNamespaces=nothing), NodeDefaults(cluster_network="podnet"))
    assert (conf.cluster_network, conf.global_namespaces) == ("podnet", "default")


def test_delegates_of_the_runtime_replace_a_cluster_network_of_the_worker() -> None:
    conf = parse_netconf(text(delegates=[BRIDGE]), NodeDefaults(cluster_network="podnet"))
    assert (conf.cluster_network, conf.delegates) == ("", (AS_WRITTEN,))


def test_cluster_network_of_the_runtime_replaces_delegates_of_the_worker() -> None:
    conf = parse_netconf(text(clusterNetwork="podnet", delegates=[]), NodeDefaults(delegates=(AS_WRITTEN,)))
    assert (conf.cluster_network, conf.delegates) == ("podnet", ())


def test_empty_delegates_keep_the_workers() -> None:
    assert parse_netconf(text(delegates=[]), NodeDefaults(delegates=(AS_WRITTEN,))).delegates == (AS_WRITTEN,)


def test_missing_version_is_the_oldest() -> None:
    assert parse_netconf('{"name": "n", "clusterNetwork": "c"}', NO_DEFAULTS).cni_version == "0.1.0"


@pytest.mark.parametrize(
    ("config", "error_class", "code", "why"),
    [
        ("", ErrorClass.INVALID_CONFIG, 6, ""),
        ('{"name": ', ErrorClass.INVALID_CONFIG, 6, "truncated"),
        ("[]", ErrorClass.INVALID_CONFIG, 6, "not a JSON object"),
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
        (text(clusterNetwork="c", logOptions={"maxSize": "1"}), ErrorClass.INVALID_CONFIG, 7, "$.logOptions.maxSize"),
        (text(clusterNetwork="c", auxiliaryCNIChainName="aux"), ErrorClass.INVALID_CONFIG, 7, "which is not a path"),
        (text(delegates=[BRIDGE], auxiliaryCNIChainName="aux"), ErrorClass.INVALID_CONFIG, 7, "which is not a path"),
        (text(clusterNetwork="/c", auxiliaryCNIChainName="../aux"), ErrorClass.INVALID_CONFIG, 7, '"../aux"'),
        (text(clusterNetwork="c", prevResult=[]), ErrorClass.INVALID_CONFIG, 7, "$.prevResult"),
    ],
)
def test_unusable_configuration_is_refused(config: str, error_class: ErrorClass, code: int, why: str) -> None:
    with pytest.raises(RequestFailedError) as caught:
        parse_netconf(config, NO_DEFAULTS)
    failure = caught.value.failure
    assert (failure.error_class, failure.code) == (error_class, code)
    assert why in failure.message


IPS_OF_0_4 = {"ips": [{"version": "4", "address": "10.0.0.5/24", "interface": 0}], "interfaces": [{"name": "eth0"}]}
IPS_OF_0_2 = {"ip4": {"ip": "10.0.0.5/24"}}


@pytest.mark.parametrize(
    ("version", "prev_result"),
    [
        ("1.1.0", {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24"}]}),
        ("1.0.0", {"ips": [{"address": "10.0.0.5/24"}], "dns": {}}),
        ("0.3.1", {"cniVersion": "0.4.0", **IPS_OF_0_4}),
        ("0.2.0", {"cniVersion": "0.2.0", **IPS_OF_0_2}),
    ],
)
def test_previous_result_of_the_configurations_shape_is_accepted(version: str, prev_result: dict[str, Any]) -> None:
    conf = parse_netconf(text(cniVersion=version, clusterNetwork="c", prevResult=prev_result), NO_DEFAULTS)
    assert conf.prev_result == prev_result


@pytest.mark.parametrize(
    ("version", "prev_result", "why"),
    [
        ("1.0.0", {"cniVersion": "0.2.0", **IPS_OF_0_2}, '"0.2.0"'),
        ("0.2.0", {"cniVersion": "0.4.0", **IPS_OF_0_4}, '"0.4.0"'),
        ("0.4.0", {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24"}]}, '"1.0.0"'),
        ("1.0.0", {"cniVersion": "7.0.0"}, "7.0.0"),
        ("1.0.0", {"cniVersion": "old"}, "not a version"),
        ("1.0.0", {"ips": [{"address": "10.0.0.5"}]}, "prefix length"),
        ("1.0.0", {"ips": "10.0.0.5/24"}, "not a result"),
    ],
)
def test_previous_result_that_does_not_fit_is_refused(version: str, prev_result: dict[str, Any], why: str) -> None:
    with pytest.raises(RequestFailedError) as caught:
        parse_netconf(text(cniVersion=version, clusterNetwork="c", prevResult=prev_result), NO_DEFAULTS)
    assert (caught.value.failure.error_class, caught.value.failure.code) == (ErrorClass.INVALID_CONFIG, 7)
    assert "prevResult" in caught.value.failure.message
    assert why in caught.value.failure.message


def test_bin_dir_is_first_unless_in_cni_path() -> None:
    conf = parse_netconf(text(clusterNetwork="c", binDir="/node/bin"), NO_DEFAULTS)
    assert conf.plugin_folders("/a::/b:") == ("/node/bin", "/a", "/b")
    assert conf.plugin_folders("/a:/node/bin") == ("/a", "/node/bin")
    assert conf.plugin_folders("") == ("/node/bin",)


def test_unknown_keys_are_named_and_no_others() -> None:
    daemons = {"chrootDir": "/hostroot", "cniDir": "", "retryDeleteOnError": True, "LOGTOSTDERR": True}
    config = text(cniversions=[], bogus=1, defaultNetwork="x", **daemons, **{"cni.dev/valid-attachments": []})
    assert unknown_netconf_keys(config) == ("bogus", "defaultNetwork")
    assert unknown_netconf_keys("no json") == ()


def test_logging_of_an_invalid_configuration_is_read() -> None:
    defaults = NodeDefaults(log_file="/var/log/worker", log_level="error")
    wishes = logging_of('{"delegates": 5, "logFile": "/var/log/x", "logOptions": {"maxSize": 7}}', defaults)
    assert (wishes.log_file, wishes.log_level) == ("/var/log/x", "error")
    assert wishes.log_options == LogOptions(max_size=7)


@pytest.mark.parametrize("config", ["no json", '{"logFile": 5}', '{"logFile": "/x", "logOptions": []}', "{}"])
def test_invalid_logging_keeps_the_workers(config: str) -> None:
    defaults = NodeDefaults(log_file="/var/log/worker")
    assert logging_of(config, defaults) == defaults


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
    assert requested_version(config) == version


@given(
    st.text()
    | st.dictionaries(st.sampled_from(["cniVersion", "name", "delegates", "clusterNetwork"]), st.text()).map(json.dumps)
)
def test_any_text_is_parsed_or_refused(config: str) -> None:
    code = 0
    try:
        parse_netconf(config, NO_DEFAULTS)
    except RequestFailedError as error:
        code = error.failure.code
    assert code in {0, 1, 6, 7}
    assert requested_version(config) in SUPPORTED
