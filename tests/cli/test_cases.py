"""`nnssl_cases`: shows whose the cases are, writes it, and sets former files aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.cli.cases import main
from nnssl.common.files import read_json
from nnssl.nnunet.cases import read_cases

NAME = "Dataset030_Hand"
CASES = [f"patient{p:03d}_{x}" for p in range(6) for x in ("CT", "MR")]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Raw and preprocessed folder of a dataset made by hand, with folds by case."""
    raw, preprocessed = tmp_path / "raw" / NAME, tmp_path / "preprocessed" / NAME
    for folder, cases in (("imagesTr", CASES), ("imagesTs", ["patient900_CT"])):
        (raw / folder).mkdir(parents=True)
        for case in cases:
            (raw / folder / f"{case}_0000.nii.gz").touch()
    (raw / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    preprocessed.mkdir(parents=True)
    split = [{"train": CASES[1:], "val": CASES[:1]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(split))
    for root in (raw.parent, preprocessed.parent):
        monkeypatch.setenv(f"nnUNet_{root.name}", str(root))
    return raw, preprocessed


def test_without_rules_it_shows_what_it_would_guess(folders, capsys):
    main(["-d", "30"])
    assert "look like parts of 7 patients" in capsys.readouterr().out
    assert not (folders[1] / "nnssl").exists()


def test_patients_origin_and_modality_are_written(folders, capsys):
    raw, preprocessed = folders
    rules = ["--patient", r"(patient\d+)", "--modality", "CT=_CT$", "MR=_MR$", "--origin", "Clinic"]
    main(["-d", NAME, *rules, "--dry-run"])
    assert not (raw / "cases.json").exists()
    assert "13 cases of 7 patients" in capsys.readouterr().out
    main(["-d", NAME, *rules])
    said = capsys.readouterr()
    assert "patient000 (Clinic): patient000_CT, patient000_MR" in said.out
    assert "modality: CT (7), MR (6)" in said.out
    assert "patients in both training and validation: ['patient000']" in said.err
    assert "--folds 5" in said.err
    record = read_cases(preprocessed, CASES)["patient003_MR"]
    assert (record.key, record.modality) == (("Clinic", "patient003"), "MR")
    assert read_json(raw / "cases.json")["cases"]["patient900_CT"]["part"] == "Ts"
    assert len(read_json(preprocessed / "splits_final.json", list)) == 1


def test_what_was_known_stays_and_the_former_file_is_set_aside(folders):
    raw, preprocessed = folders
    main(["-d", "30", "--patient", r"(patient\d+)"])
    for _ in range(2):  # the second time there is nothing to write
        main(["-d", "30", "--modality", "_(CT|MR)"])
    record = read_cases(preprocessed, CASES)["patient001_CT"]
    assert (record.patient, record.modality) == ("patient001", "CT")
    (aside,) = (preprocessed / "nnssl").glob("cases_before_*.json")
    assert read_json(aside)["cases"]["patient001_CT"]["modality"] == "unknown"
    assert len([*raw.glob("cases_before_*.json")]) == 1


def test_folds_are_written_only_when_asked_for(folders):
    raw, preprocessed = folders
    before = read_json(preprocessed / "splits_final.json", list)
    main(["-d", "30", "--patient", r"(patient\d+)", "--folds", "3"])
    splits = read_json(preprocessed / "splits_final.json", list)
    assert len(splits) == 3
    assert splits == read_json(raw / "splits_final.json", list)
    for split in splits:
        assert not {c[:10] for c in split["train"]} & {c[:10] for c in split["val"]}
        assert "patient900_CT" not in split["train"]
    (aside,) = preprocessed.glob("splits_final_before_*.json")
    assert read_json(aside, list) == before


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["--patient", r"patient\d+"], "has no group"),
        (["--patient", "(patient"], "no regular expression"),
        (["--patient", r"(subject\d+)"], "nothing of .* is found in 'patient000_CT'"),
        (["--modality", "CT=_CT$"], "nothing of .* is found in 'patient000_MR'"),
    ],
)
def test_rules_that_do_not_fit_are_refused(folders, rules, message, capsys):
    with pytest.raises(SystemExit, match=message):
        main(["-d", "30", *rules])
    assert not (folders[0] / "cases.json").exists()
