"""Files that several processes write at once: ranks of one run, cells of one study."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nnssl.common.files import read_json, write_json


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
    assert read_json(file) == [1]
    assert [each.name for each in tmp_path.iterdir()] == ["cases.json"]
