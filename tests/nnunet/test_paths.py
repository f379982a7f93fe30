"""Folders and file names of nnU-Net: found once, refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.nnunet import paths


def test_a_dataset_is_found_by_number_and_by_name(tmp_path: Path) -> None:
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    for folder in (raw / "Dataset027_ACDC", preprocessed / "Dataset027_ACDC", raw / "Dataset270_X"):
        folder.mkdir(parents=True)
    for dataset in (27, "27", "027", "Dataset027_ACDC"):
        assert paths.dataset_name(dataset, raw, preprocessed) == "Dataset027_ACDC"
    assert paths.dataset_number("Dataset027_ACDC") == 27


@pytest.mark.parametrize("dataset", [28, "28", "Dataset028_MSD", "ACDC"])
def test_a_missing_dataset_is_told_with_where_it_was_looked_for(dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^dataset {dataset}: .* found none .*{tmp_path}"):
        paths.dataset_name(dataset, tmp_path)


def test_two_names_of_one_number_are_refused(tmp_path: Path) -> None:
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    (raw / "Dataset027_ACDC").mkdir(parents=True)
    (preprocessed / "Dataset027_Old").mkdir(parents=True)
    with pytest.raises(ValueError, match="found Dataset027_ACDC, Dataset027_Old"):
        paths.Roots(raw, preprocessed).dataset(27)


def test_roots_come_from_the_environment_when_they_are_asked_for(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(paths.RAW, str(tmp_path))
    assert paths.root_folder(paths.RAW) == tmp_path
    monkeypatch.setenv(paths.RAW, "")
    assert paths.find_root(paths.RAW) is None
    with pytest.raises(ValueError, match="nnUNet_raw is not set; export nnUNet_raw=FOLDER"):
        paths.root_folder(paths.RAW)


def test_the_data_identifier_may_be_inherited() -> None:
    configurations = {
        "3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres"},
        "a": {"inherits_from": "b"},
        "b": {"inherits_from": "a"},
    }
    found = {
        name: paths.find_data_identifier({"configurations": configurations}, name)
        for name in (*configurations, "2d")
    }
    assert found.pop("3d_fullres") == found.pop("3d_cascade_fullres") == "nnUNetPlans_3d_fullres"
    assert found == {"a": None, "b": None, "2d": None}


def test_raw_images_are_grouped_by_case_and_the_folder_is_listed_once(tmp_path, monkeypatch):
    for name in ("b_0000.nii.gz", "a_x_0001.nii.gz", "a_x_0000.nii.gz", "c.nii.gz", "d_0000.nrrd"):
        (tmp_path / name).touch()
    listed, glob = [], Path.glob
    monkeypatch.setattr(Path, "glob", lambda *given: listed.append(given) or glob(*given))
    found = paths.find_raw_images(tmp_path, ".nii.gz")
    assert {case: [file.name for file in files] for case, files in found.items()} == {
        "a_x": ["a_x_0000.nii.gz", "a_x_0001.nii.gz"],
        "b": ["b_0000.nii.gz"],
    }
    assert len(listed) == 1
    assert paths.find_raw_images(tmp_path / "missing", ".nii.gz") == {}


def test_folders_of_folds_are_found_and_taken_apart(tmp_path: Path) -> None:
    one = paths.fold_folder(tmp_path, "nnSSLMAETrainer", "nnUNetPlans", "2d", 0)
    other = paths.fold_folder(tmp_path, "nnUNetTrainer", "nnUNetPlans", "2d", "all")
    for folder in (one, other, tmp_path / "a__b" / "fold_0", tmp_path / "a__b__c__d" / "fold_0"):
        folder.mkdir(parents=True)
    assert paths.find_fold_folders(tmp_path) == [one, other]
    assert paths.find_fold_folders(tmp_path, trainer="nnSSL*", fold=0) == [one]
    assert paths.parse_fold_folder(other) == ("nnUNetTrainer", "nnUNetPlans", "2d", "all")
