"""The plugin that does nothing: what a chain finds after it."""

from __future__ import annotations

from typing import Any

import pytest

from nodeworker.plugins.native.api import Call, NativeError
from nodeworker.plugins.native.kinds import passthru
from nodeworker.plugins.spec import results
from nodeworker.plugins.spec.results import IP, Interface, Result

PREVIOUS = Result(cni_version="1.0.0", interfaces=(Interface(name="eth0"),), ips=(IP(address="10.0.0.5/24"),))


def call(version: str | None = "1.0.0", prev_result: Result | None = None) -> Call:
    config: dict[str, Any] = {"name": "vendor", "type": "passthru"}
    if version is not None:
        config["cniVersion"] = version
    return Call(container_id="c1", netns="/run/netns/gone", ifname="net2", config=config, prev_result=prev_result)


def test_previous_result_is_passed_on_unchanged() -> None:
    assert passthru.add(call(prev_result=PREVIOUS), None) is PREVIOUS
    assert passthru.add(call("0.2.0", PREVIOUS), None) is PREVIOUS


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_first_of_a_chain_has_an_empty_result_of_the_right_version(version: str) -> None:
    result = passthru.add(call(version), Result(cni_version=version, ips=PREVIOUS.ips))
    assert result == Result(cni_version=version)
    assert results.decode(results.encode(result, version), version) == result


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "", None, "x"])
def test_version_that_has_no_empty_result_is_incompatible(version: str | None) -> None:
    with pytest.raises(NativeError) as caught:
        passthru.add(call(version), None)
    assert caught.value.code == 1


def test_check_and_del_of_an_empty_plugin_need_nothing() -> None:
    passthru.check(call(prev_result=PREVIOUS))
    passthru.delete(call())
    assert passthru.TYPE == "passthru"
    assert passthru.unsupported({"type": "passthru", "whatever": 1}) == ""
