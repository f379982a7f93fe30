"""Folds: drawn by patient, put back, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnssl.nnunet.cases import CaseRecord
from nnssl.nnunet.splits import SIDES, check_fold, check_split, draw_splits, restore_records

PATIENTS = {f"p{n:02d}_{frame}": f"p{n:02d}" for n in range(12) for frame in ("a", "b", "c")}


def records(patients: dict[str, str]) -> dict[str, CaseRecord]:
    return {case: CaseRecord(patient, "D") for case, patient in patients.items()}


def test_folds_are_those_of_nnunets_acdc_converter():
    """RandomState(1234).shuffle(sorted patients), fold f validates on every fifth from f."""
    order = sorted(set(PATIENTS.values()))
    np.random.RandomState(1234).shuffle(order)
    for fold, split in enumerate(draw_splits(PATIENTS)):
        assert {PATIENTS[case] for case in split["val"]} == set(order[fold::5])


def test_every_case_is_validated_once_and_no_patient_is_parted():
    splits = draw_splits(PATIENTS, folds=5, seed=3)
    assert sorted(case for split in splits for case in split["val"]) == sorted(PATIENTS)
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(PATIENTS)
    check_split(splits, records(PATIENTS))


def test_seed_decides():
    assert draw_splits(PATIENTS, seed=1) == draw_splits(PATIENTS, seed=1)
    assert draw_splits(PATIENTS, seed=1) != draw_splits(PATIENTS, seed=2)


def test_few_patients_give_fewer_folds():
    assert len(draw_splits({"a": "p", "b": "q", "c": "r"})) == 3
    with pytest.raises(ValueError, match="at least two patients; found \\['p'\\]"):
        draw_splits({"a": "p", "b": "p"})


@pytest.mark.parametrize("count", [2, 3, 4])
def test_fewer_than_five_cases_without_records_give_as_many_folds(tmp_path: Path, count: int):
    """nnU-Net's own rule fails there: five folds of at least five cases."""
    folder = tmp_path / "Dataset001_Few" / "nnUNetPlans_2d"
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"c{number}.b2nd").touch()
        (folder / f"c{number}_seg.b2nd").touch()
    check_fold(folder, count - 1)
    splits = json.loads((folder.parent / "splits_final.json").read_text())
    assert sorted(case for fold in splits for case in fold["val"]) == [
        f"c{k}" for k in range(count)
    ]
    assert all(sorted(f["train"] + f["val"]) == [f"c{k}" for k in range(count)] for f in splits)
    with pytest.raises(ValueError, match=f"{count} folds"):
        check_fold(folder, count)


def test_one_case_is_told_of_fold_all_and_five_are_left_to_nnunet(tmp_path: Path):
    folder = tmp_path / "Dataset001_Few" / "nnUNetPlans_2d"
    folder.mkdir(parents=True)
    (folder / "c0.b2nd").touch()
    with pytest.raises(ValueError, match="none can be held out"):
        check_fold(folder, 0)
    check_fold(folder, "all")
    for number in range(1, 5):
        (folder / f"c{number}.b2nd").touch()
    check_fold(folder, 0)
    assert not (folder.parent / "splits_final.json").exists()


@pytest.mark.parametrize("side", ["train", "val"])
def test_a_fold_without_cases_on_a_side_is_refused_where_it_is_needed(
    tiny_dataset: Any, side: str
) -> None:
    split = tiny_dataset.preprocessed / "splits_final.json"
    folds = json.loads(split.read_text())
    folds[0][side] = []
    split.write_text(json.dumps(folds))
    with pytest.raises(ValueError, match=f"fold 0 .* has no case in {side}; .* fold all"):
        check_fold(data_folder(tiny_dataset), 0, SIDES)
    if side == "val":
        check_fold(data_folder(tiny_dataset), 0)  # pre-training goes on without


def test_a_parted_patient_is_named():
    splits = draw_splits(PATIENTS)
    case = splits[2]["train"].pop()
    splits[2]["val"].append(case)
    with pytest.raises(ValueError, match=rf"fold 2 .*'{PATIENTS[case]}'"):
        check_split(splits, records(PATIENTS))


def test_an_unknown_case_is_named():
    with pytest.raises(ValueError, match=r"fold 0 .*'stranger'"):
        check_split([{"train": ["stranger"], "val": []}], records(PATIENTS))


def test_copies_are_put_where_nothing_is(tmp_path: Path):
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    raw.mkdir()
    restore_records(raw, preprocessed)
    assert not preprocessed.exists()
    for number in (1, 2):
        (raw / "splits_final.json").write_text(f"[{number}]")
        restore_records(raw, preprocessed)
        assert json.loads((preprocessed / "splits_final.json").read_text()) == [1]


def data_folder(dataset: Any) -> Any:
    return dataset.preprocessed / "nnUNetPlans_2d"


def test_the_converters_copies_are_put_back(tiny_dataset: Any) -> None:
    split = tiny_dataset.preprocessed / "splits_final.json"
    cases = tiny_dataset.preprocessed / "nnssl" / "cases.json"
    before = json.loads(split.read_text()), json.loads(cases.read_text())
    split.unlink()
    cases.unlink()
    check_fold(data_folder(tiny_dataset), 0)
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
    check_fold(data_folder(tiny_dataset), 0)
    for fold in json.loads(split.read_text()):
        assert not {c[:2] for c in fold["train"]} & {c[:2] for c in fold["val"]}
        assert "p9_f0" not in fold["train"] + fold["val"]


def test_fold_all_needs_no_split(tiny_dataset: Any) -> None:
    (tiny_dataset.preprocessed / "splits_final.json").unlink()
    (tiny_dataset.raw / "splits_final.json").unlink()
    check_fold(data_folder(tiny_dataset), "all")
    assert not (tiny_dataset.preprocessed / "splits_final.json").exists()


@pytest.mark.parametrize("fold", [2, -1])
def test_a_fold_beyond_the_file_is_refused(tiny_dataset: Any, fold: int) -> None:
    with pytest.raises(ValueError, match="2 folds"):
        check_fold(data_folder(tiny_dataset), fold)
