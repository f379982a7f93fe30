"""``nnssl_convert`` and ``nnssl_phantom`` as a user meets them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnssl.cli import convert, phantom
from nnssl.convert.spec import find_specs


@pytest.fixture
def source(tmp_path: Path) -> Path:
    phantom.main([str(tmp_path / "phantom"), "--patients", "2", "--workers", "1"])
    return tmp_path / "phantom"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.delenv("nnssl_configs", raising=False)


def run(*arguments: object) -> None:
    convert.main([str(each) for each in (*arguments, "--workers", 1)])


def test_converts_and_says_what_next(source: Path, tmp_path: Path, capsys):
    run("ACDC", source, "-d", 27)
    out = capsys.readouterr().out
    assert "4 cases of 2 patients" in out
    assert "please cite: O. Bernard" in out
    assert "nnUNetv2_plan_and_preprocess -d 27" in out
    assert len(os.listdir(tmp_path / "raw" / "Dataset027_ACDC" / "imagesTr")) == 4


def test_options_that_describe_files_are_refused_for_a_known_dataset(source: Path):
    with pytest.raises(SystemExit, match=r"--images, --label .* are for .*; ACDC says"):
        run("ACDC", source, "-d", 27, "--images", "T1={case}.nii.gz")


def test_headers_of_a_known_dataset_are_repaired_where_asked_for(source: Path, capsys):
    label = next((source / "training").rglob("*_gt.nii.gz"))
    image = sitk.ReadImage(str(label))
    bare = sitk.GetImageFromArray(sitk.GetArrayFromImage(image))
    sitk.WriteImage(bare, str(label))
    with pytest.raises(SystemExit, match=r"of the label .--headers repair would"):
        run("ACDC", source, "-d", 27, "--dry-run")
    run("ACDC", source, "-d", 27, "--headers", "repair", "--dry-run")
    assert "4 cases; nothing was written" in capsys.readouterr().out


def test_dry_run_writes_nothing(source: Path, tmp_path: Path, capsys):
    run("ACDC", source, "-d", 27, "--dry-run")
    out = capsys.readouterr().out
    assert "imagesTr/patient001_frame01_0000.nii.gz" in out
    assert "4 cases; nothing was written" in out
    assert not (tmp_path / "raw").exists()
    assert not (tmp_path / "preprocessed").exists()


def test_list_shows_users_datasets_too(tmp_path: Path, monkeypatch, capsys):
    convert.main(["--list"])
    shown = capsys.readouterr().out
    assert "ACDC" in shown
    assert "CC BY-NC-SA" in shown
    (tmp_path / "mine" / "datasets").mkdir(parents=True)
    installed = Path(find_specs()["ACDC"]).read_text()
    mine = tmp_path / "mine" / "datasets" / "Mine.yaml"
    mine.write_text(installed.replace("name: ACDC", "name: Mine"))
    monkeypatch.setenv(
        "nnssl_configs", os.pathsep.join([str(tmp_path / "none"), str(mine.parents[1])])
    )
    convert.main(["--list"])
    assert "Mine" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_unset_variable_is_named(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.delenv(name)
    with pytest.raises(SystemExit, match=f"{name} is not set"):
        run("ACDC", tmp_path, "-d", 27)


def test_mistakes_end_with_one_message(tmp_path: Path):
    with pytest.raises(SystemExit, match="unknown dataset 'ACDD'; did you mean ACDC"):
        run("ACDD", tmp_path, "-d", 27)
    with pytest.raises(SystemExit, match="needs NAME SOURCE -d ID"):
        run("ACDC", tmp_path)
    with pytest.raises(SystemExit, match=r"is not a folder(.|\n)*creatis"):
        run("ACDC", tmp_path / "missing", "-d", 27)


def test_workers_must_be_positive(source: Path):
    with pytest.raises(SystemExit, match="workers is 0; it must be at least 1"):
        convert.main(["ACDC", str(source), "-d", "27", "--workers", "0"])


def test_the_phantom_does_not_overwrite(source: Path):
    with pytest.raises(SystemExit, match="not empty"):
        phantom.main([str(source)])


def volumes(folder: Path, names: str) -> None:
    """Two cases of a bright box in air and its mask."""
    rng = np.random.default_rng(0)
    for case in names:
        array = rng.integers(-1000, -900, (4, 8, 8)).astype(np.int16)
        array[1:3, 2:6, 2:6] += 1000
        (folder / case).mkdir(parents=True)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / case / "vol.nrrd"))
        mask = (array > 0).astype(np.uint8) * 7
        sitk.WriteImage(sitk.GetImageFromArray(mask), str(folder / case / "seg.nrrd"))


def test_a_private_folder_with_and_without_labels(tmp_path: Path, capsys):
    volumes(tmp_path / "usz", "abc")
    private = ["folder", tmp_path / "usz", "--name", "USZ", "--images", "CT={case}/vol.nrrd"]
    run(*private, "-d", 50, "--label", "{case}/seg.nrrd", "--labels", "tumour=any")
    run(*private, "-d", 51, "--leave-out", "c")
    assert "Dataset051_USZ: 2 cases of 2 patients" in capsys.readouterr().out
    for number, label in ((50, "tumour"), (51, "foreground")):
        raw = tmp_path / "raw" / f"Dataset0{number}_USZ"
        dataset = json.loads((raw / "dataset.json").read_text())
        assert dataset["labels"] == {"background": 0, label: 1}
    decisions = json.loads((raw / "conversion.json").read_text())["decisions"]
    assert decisions["left_out"] == ["c"]
    with pytest.raises(SystemExit, match="folder needs --name and --images"):
        run("folder", tmp_path, "-d", 52)


def test_images_only_and_another_test_set(source: Path, tmp_path: Path, capsys):
    run("ACDC", source, "-d", 27, "--images-only")
    dataset = json.loads((tmp_path / "raw" / "Dataset027_ACDC" / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "foreground": 1}
    with pytest.raises(SystemExit, match="test is '\\(', no regular expression"):
        run("ACDC", source, "-d", 28, "--test", "(")
    run("ACDC", source, "-d", 28, "--test", "patient002")
    assert "one training patient makes no folds; train fold all" in capsys.readouterr().out


def test_other_tables_beside_the_specs_are_no_datasets(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "mine" / "datasets").mkdir(parents=True)
    (tmp_path / "mine" / "datasets" / "overlaps.yaml").write_text("overlaps:\n  - [A, B]\n")
    monkeypatch.setenv("nnssl_configs", str(tmp_path / "mine"))
    convert.main(["--list"])
    shown = capsys.readouterr().out
    assert "overlaps" not in shown
    for name in ("MMWHS_CT", "BraTS2018", "LUNA16", "folder"):
        assert f"{name} " in shown
