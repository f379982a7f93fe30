"""Records of patients and origins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.nnunet.cases import CaseRecord, read_cases


def write(folder: Path, cases: object) -> None:
    (folder / "nnssl").mkdir(parents=True)
    content = cases if isinstance(cases, str) else json.dumps({"version": 1, "cases": cases})
    (folder / "nnssl" / "cases.json").write_text(content)


def test_records_are_read(tmp_path: Path):
    entry = {"patient": "p", "dataset": "A", "modality": "CT", "orientation": "LPS", "more": 1}
    write(tmp_path, {"c": entry, "d": {"patient": "q", "dataset": "A"}})
    assert read_cases(tmp_path, ["c"]) == {"c": CaseRecord("p", "A", "CT", "LPS")}
    assert read_cases(tmp_path, iter("d")) == {"d": CaseRecord("q", "A", "unknown", None)}


def test_without_a_file_each_case_is_a_patient(tmp_path: Path):
    found = read_cases(tmp_path / "Dataset004_Hippo_campus", ["h1", "h2"])
    assert found["h2"] == CaseRecord("h2", "Hippo_campus", "unknown", None)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ({}, "no entry for \\['c'\\]"),
        ({"c": {"patient": "p"}}, r"cases.c.dataset: is missing"),
        ("{", "cases.json is not valid JSON"),
    ],
)
def test_incomplete_files_are_named(tmp_path: Path, cases: object, message: str):
    write(tmp_path, cases)
    with pytest.raises(ValueError, match=message):
        read_cases(tmp_path, ["c"])
