"""Objects of an API server whose kinds have no schema, or an old one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nodeworker.planning.cluster.apiserver.decode import NADS
from nodeworker.planning.resolve.objects import Nad


@pytest.mark.parametrize("spec", [{}, {"spec": None}, {"spec": {}}, {"spec": {"config": None}}])
def test_nad_may_be_without_configuration(spec: dict[str, Any]) -> None:
    assert NADS.decode(json.dumps({"metadata": {"namespace": "shop", "name": "a"}, **spec}).encode()) == Nad(
        "shop", "a"
    )


@pytest.mark.parametrize("spec", [{"config": {"type": "bridge"}}, {"config": 5}, "{}", []])
def test_nad_of_another_shape_exists_and_has_a_problem(spec: Any) -> None:
    decoded = NADS.decode(json.dumps({"metadata": {"namespace": "shop", "name": "a"}, "spec": spec}).encode())
    assert (decoded.namespace, decoded.name, decoded.config) == ("shop", "a", "")
    assert decoded.problem
