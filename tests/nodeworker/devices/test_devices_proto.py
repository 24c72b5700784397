"""The generated code is what its definition makes."""

from __future__ import annotations

from generate_podresources import FOLDER, REPOSITORY, generated


def test_generated_code_is_that_of_its_definition() -> None:
    expected = generated()
    assert list(expected) == ["podresources_grpc.py", "podresources_pb2.py", "podresources_pb2.pyi"]
    for name, text in expected.items():
        assert (REPOSITORY / FOLDER / name).read_text() == text, "run generate_podresources.py"
