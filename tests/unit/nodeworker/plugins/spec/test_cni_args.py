"""CNI_ARGS: parsed, and rendered for delegates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.schema import ErrorClass, Pod
from nodeworker.errors import RequestFailedError
from nodeworker.plugins.spec.cni_args import delegate_args, parse_args, pod_of

# What containerd sends: its order is that of a Go map, another one each time.
CONTAINERD = "K8S_POD_NAME=web;K8S_POD_UID=u1;IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_INFRA_CONTAINER_ID=c1"
FIXED = "IgnoreUnknown=true;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("A=1", {"A": "1"}),
        ("A=1;B=x=y;C=", {"A": "1", "B": "x=y", "C": ""}),
        ("A=1;A=2;", {"A": "2"}),
    ],
)
def test_pairs_are_read(text: str, expected: dict[str, str]) -> None:
    assert parse_args(text) == expected


@pytest.mark.parametrize("text", ["A", "A=1;B", "=1", "K8S_POD_NAME"])
def test_piece_that_is_no_pair_is_refused_with_code_4(text: str) -> None:
    with pytest.raises(RequestFailedError) as caught:
        parse_args(text)
    assert (caught.value.failure.error_class, caught.value.failure.code) == (ErrorClass.INVALID_REQUEST, 4)


@pytest.mark.parametrize(
    ("args", "pod"),
    [
        (CONTAINERD, Pod("shop", "web", "u1")),
        ("", Pod()),
        ("IgnoreUnknown=1;broken;K8S_POD_NAME=web", Pod("default", "web")),
    ],
)
def test_pod_is_found_among_any_other_objects(args: str, pod: Pod) -> None:
    assert pod_of(args) == pod


@pytest.mark.parametrize(
    ("extra", "mac", "ips", "default", "expected"),
    [
        ("", "", (), True, FIXED),
        ("", "", (), False, FIXED),
        (";Z=1;A=x=y", "", (), False, FIXED + ";Z=1;A=x=y"),
        (
            ";Z=1",
            "02:00:00:00:00:01",
            ("10.0.0.1/24", "fd00::1"),
            False,
            FIXED + ";Z=1;MAC=02:00:00:00:00:01;IP=10.0.0.1/24,fd00::1",
        ),
        (";IP=10.9.9.9;MAC=02:00:00:00:00:09", "", (), True, FIXED + ";IP=10.9.9.9;MAC=02:00:00:00:00:09"),
        (";IP=10.9.9.9;MAC=02:00:00:00:00:09", "", (), False, FIXED),
        (";IP=10.9.9.9;Z=1", "", ("10.0.0.1",), True, FIXED + ";Z=1;IP=10.0.0.1"),
    ],
)
def test_delegates_see_args_in_the_order_of_multus(
    extra: str, mac: str, ips: tuple[str, ...], default: bool, expected: str
) -> None:
    assert delegate_args(parse_args(CONTAINERD + extra), "c1", mac=mac, ips=ips, default=default) == expected


def test_runtime_that_knows_no_pods_leaves_the_keys_empty() -> None:
    assert delegate_args({}, "c1", mac="", ips=(), default=True) == (
        "IgnoreUnknown=true;K8S_POD_NAMESPACE=;K8S_POD_NAME=;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID="
    )


@given(st.text())
def test_pod_of_never_fails(args: str) -> None:
    assert isinstance(pod_of(args), Pod)
