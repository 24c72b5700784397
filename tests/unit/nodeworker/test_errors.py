from __future__ import annotations

import pytest

from events.schema import ErrorClass, Phase, Pod
from nodeworker.errors import CNI_CODES, about, failed, subject_of


def test_every_class_of_failure_has_a_code() -> None:
    assert set(CNI_CODES) == set(ErrorClass)


@pytest.mark.parametrize(("length", "kept"), [(4096, 4096), (4097, 4095), (1024 * 1024, 4095)])
def test_sentence_that_quotes_too_much_is_cut(length: int, kept: int) -> None:
    message = failed(ErrorClass.PLUGIN_OUTPUT, Phase.ADD, "x" * length).failure.message
    assert message == "x" * kept + "…" * (kept < length)


@pytest.mark.parametrize(
    ("pod", "container_id", "message"),
    [
        (Pod("web", "web"), "0a1b2c3d4e5f6789", "pod web/web: network web/web-net of pod web/web is broken"),
        (Pod(), "0a1b2c3d4e5f6789", "sandbox 0a1b2c3d4e5f: network web/web-net of pod web/web is broken"),
        (Pod(), "", "network web/web-net of pod web/web is broken"),
    ],
)
def test_message_begins_with_its_subject_once(pod: Pod, container_id: str, message: str) -> None:
    failure = failed(ErrorClass.INTERNAL, Phase.ADD, "network web/web-net of pod web/web is broken").failure
    subject = subject_of(pod, container_id)
    named = about(subject, failure)
    assert (named.message, named.subject) == (message, subject)
    assert about("pod another/one", about(subject, named)) == (named if subject else about("pod another/one", failure))


def test_sentence_with_its_subject_is_cut_too() -> None:
    failure = failed(ErrorClass.INTERNAL, Phase.ADD, "x" * 4096).failure
    assert len(about("pod shop/web", failure).message) == 4096
