from __future__ import annotations

import pytest

from events.schema import ErrorClass, Phase
from nodeworker.errors import CNI_CODES, failed


def test_every_class_of_failure_has_a_code() -> None:
    assert set(CNI_CODES) == set(ErrorClass)


@pytest.mark.parametrize(("length", "kept"), [(4096, 4096), (4097, 4095), (1024 * 1024, 4095)])
def test_sentence_that_quotes_too_much_is_cut(length: int, kept: int) -> None:
    message = failed(ErrorClass.PLUGIN_OUTPUT, Phase.ADD, "x" * length).failure.message
    assert message == "x" * kept + "…" * (kept < length)
