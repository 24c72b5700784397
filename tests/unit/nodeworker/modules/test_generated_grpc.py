"""The generated code is what its definition makes."""

from __future__ import annotations

from tests.support.grpc.generate_grpc import DEFINITIONS, generated
from tests.support.repository import REPOSITORY


def test_generated_code_is_that_of_its_definition() -> None:
    expected = generated()
    assert len(expected) == 3 * len(DEFINITIONS)
    for path, text in expected.items():
        assert (REPOSITORY / path).read_text() == text, "run generate_grpc.py"
