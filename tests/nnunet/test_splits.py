"""Folds by patient."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nnssl.nnunet.cases import CaseRecord
from nnssl.nnunet.splits import check_split, patient_splits, restore_split

PATIENTS = {f"p{n:02d}_{frame}": f"p{n:02d}" for n in range(12) for frame in ("a", "b", "c")}


def records(patients: dict[str, str]) -> dict[str, CaseRecord]:
    return {case: CaseRecord(patient, "D") for case, patient in patients.items()}


def test_folds_are_those_of_nnunets_acdc_converter():
    """RandomState(1234).shuffle(sorted patients), fold f validates on every fifth from f."""
    order = sorted(set(PATIENTS.values()))
    np.random.RandomState(1234).shuffle(order)
    for fold, split in enumerate(patient_splits(PATIENTS)):
        assert {PATIENTS[case] for case in split["val"]} == set(order[fold::5])


def test_every_case_is_validated_once_and_no_patient_is_parted():
    splits = patient_splits(PATIENTS, folds=5, seed=3)
    assert sorted(case for split in splits for case in split["val"]) == sorted(PATIENTS)
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(PATIENTS)
    check_split(splits, records(PATIENTS))


def test_seed_decides():
    assert patient_splits(PATIENTS, seed=1) == patient_splits(PATIENTS, seed=1)
    assert patient_splits(PATIENTS, seed=1) != patient_splits(PATIENTS, seed=2)


def test_few_patients_give_fewer_folds():
    assert len(patient_splits({"a": "p", "b": "q", "c": "r"})) == 3
    with pytest.raises(ValueError, match="at least two patients; found \\['p'\\]"):
        patient_splits({"a": "p", "b": "p"})


def test_a_parted_patient_is_named():
    splits = patient_splits(PATIENTS)
    case = splits[2]["train"].pop()
    splits[2]["val"].append(case)
    with pytest.raises(ValueError, match=rf"fold 2 .*'{PATIENTS[case]}'"):
        check_split(splits, records(PATIENTS))


def test_an_unknown_case_is_named():
    with pytest.raises(ValueError, match=r"fold 0 .*'stranger'"):
        check_split([{"train": ["stranger"], "val": []}], records(PATIENTS))


def test_restore_split(tmp_path: Path):
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    raw.mkdir()
    assert not restore_split(raw, preprocessed)
    (raw / "splits_final.json").write_text("[1]")
    assert restore_split(raw, preprocessed)
    (raw / "splits_final.json").write_text("[2]")
    assert not restore_split(raw, preprocessed)
    assert json.loads((preprocessed / "splits_final.json").read_text()) == [1]
