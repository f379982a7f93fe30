"""Files that several processes write at once: ranks of one run, cells of one study."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from nnssl.common.files import TEMPORARY, atomic_path, read_json, write_json


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    file, content = tmp_path / "new" / "geometry.json", {"values": list(range(2000))}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_json(file, content), range(64)))
    assert read_json(file) == content
    assert [each.name for each in file.parent.iterdir()] == ["geometry.json"]


def test_what_cannot_be_written_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    write_json(file, [1])
    with pytest.raises(TypeError):
        write_json(file, [object()])
    assert read_json(file, list) == [1]
    assert [each.name for each in tmp_path.iterdir()] == ["cases.json"]


@pytest.mark.parametrize("sole_writer", [False, True])
def test_a_file_is_replaced_whole_or_left_as_it_was(sole_writer: bool, tmp_path: Path) -> None:
    file = tmp_path / "map.b2nd"
    file.write_text("old")
    with suppress(KeyError), atomic_path(file, sole_writer) as part:
        part.write_text("half")
        raise KeyError
    assert (file.read_text(), list(tmp_path.iterdir())) == ("old", [file])
    with atomic_path(file, sole_writer) as part:
        part.write_text("new")
        assert (part.parent, part.suffix) == (tmp_path, ".b2nd")
        assert part.name.startswith(TEMPORARY)
        assert file.read_text() == "old"
    assert (file.read_text(), list(tmp_path.iterdir())) == ("new", [file])


def test_only_a_sole_writer_takes_over_what_a_killed_run_has_left(tmp_path: Path) -> None:
    left = tmp_path / f"{TEMPORARY}image.nii.gz"
    for sole_writer, stays in ((False, True), (True, False)):
        left.write_text("half")
        with atomic_path(tmp_path / "image.nii.gz", sole_writer) as part:
            part.write_text("whole")
        assert left.exists() is stays
