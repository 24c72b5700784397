"""CONTRIBUTING's map has every folder with the sentence of its docstring, and its layers are those of the contracts."""

from __future__ import annotations

from tests.support import room_map

AGAIN = "run `python -m tests.support.room_map`:\n"


def test_every_row_of_the_map_is_the_docstring_of_its_folder() -> None:
    expected, written = room_map.rows(), room_map.written(room_map.MAP).splitlines()[2:]
    differing = [f"is:        {row}" for row in written if row not in expected]
    differing += [f"should be: {row}" for row in expected if row not in written]
    assert not differing, AGAIN + "\n".join(differing)


def test_tables_are_in_order() -> None:
    for name in (room_map.MAP, room_map.LAYERS):
        assert room_map.written(name) == room_map.generated(name), AGAIN + name


def test_sentence_of_a_folder_fits_a_line() -> None:
    for row in room_map.rows():
        assert len(row.split(" | ")[1]) <= 120, row
