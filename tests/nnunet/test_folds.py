"""Splits and records of cases that are put back, drawn by patient, or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nnssl.nnunet import folds


def data_folder(dataset: Any) -> Any:
    return dataset.preprocessed / "nnUNetPlans_2d"


def test_the_converters_copies_are_put_back(tiny_dataset: Any) -> None:
    split = tiny_dataset.preprocessed / "splits_final.json"
    cases = tiny_dataset.preprocessed / "nnssl" / "cases.json"
    before = json.loads(split.read_text()), json.loads(cases.read_text())
    split.unlink()
    cases.unlink()
    folds.check(data_folder(tiny_dataset), 0)
    assert (json.loads(split.read_text()), json.loads(cases.read_text())) == before


def test_known_patients_get_a_split_by_patient(tiny_dataset: Any) -> None:
    """nnU-Net would draw one case by case; imagesTs is never in it."""
    split = tiny_dataset.preprocessed / "splits_final.json"
    split.unlink()
    (tiny_dataset.raw / "splits_final.json").unlink()
    cases = tiny_dataset.preprocessed / "nnssl" / "cases.json"
    content = json.loads(cases.read_text())
    content["cases"]["p9_f0"] = {"patient": "p9", "dataset": "Tiny", "part": "Ts"}
    cases.write_text(json.dumps(content))
    folds.check(data_folder(tiny_dataset), 0)
    for fold in json.loads(split.read_text()):
        assert not {c[:2] for c in fold["train"]} & {c[:2] for c in fold["val"]}
        assert "p9_f0" not in fold["train"] + fold["val"]


def test_fold_all_needs_no_split(tiny_dataset: Any) -> None:
    (tiny_dataset.preprocessed / "splits_final.json").unlink()
    (tiny_dataset.raw / "splits_final.json").unlink()
    folds.check(data_folder(tiny_dataset), "all")
    assert not (tiny_dataset.preprocessed / "splits_final.json").exists()


@pytest.mark.parametrize("fold", [2, -1])
def test_a_fold_beyond_the_file_is_refused(tiny_dataset: Any, fold: int) -> None:
    with pytest.raises(ValueError, match="2 folds"):
        folds.check(data_folder(tiny_dataset), fold)
