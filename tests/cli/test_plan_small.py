"""``nnssl_plan_small`` as a user meets it; the arithmetic is tested in tests/nnunet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.cli.plan_small import main

NETWORK = {"n_conv_per_stage": [2, 2], "n_conv_per_stage_decoder": [2]}
PLANNED = {
    "patch_size": [256, 224],
    "spacing": [1.5, 1.5],
    "batch_size": 49,
    "median_image_size_in_voxels": [237.0, 208.0],
    "architecture": {"arch_kwargs": NETWORK},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    folder = tmp_path / "Dataset027_ACDC"
    folder.mkdir()
    content = {"plans_name": "nnUNetPlans", "configurations": {"2d": PLANNED}}
    (folder / "nnUNetPlans.json").write_text(json.dumps(content))
    return folder


def test_writes_beside_the_plans_and_says_what_next(folder: Path, capsys):
    before = (folder / "nnUNetPlans.json").read_text()
    options = "--name Tiny --spacing 3 --patch 64 --batch 2 --features 12 24 48 96"
    main(["-d", "27", "-c", "2d", *options.split()])
    small = json.loads((folder / "Tiny.json").read_text())["configurations"]["2d"]
    assert (small["patch_size"], small["batch_size"]) == ([64, 64], 2)
    assert small["spacing"] == [3.0, 3.0]
    assert small["architecture"]["arch_kwargs"]["features_per_stage"] == [12, 24, 48, 96]
    assert (folder / "nnUNetPlans.json").read_text() == before
    assert "nnUNetv2_preprocess -d 27 -plans_name Tiny -c 2d" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["Tiny.json", "nnUNetPlans.json"]


def test_small_plans_of_other_sizes_are_not_overwritten(folder: Path):
    main(["-d", "27", "-c", "2d", "--patch", "64"])
    before = (folder / "nnUNetPlansSmall.json").read_text()
    main(["-d", "27", "-c", "2d", "--patch", "64"])
    with pytest.raises(SystemExit, match="exists already and says something else"):
        main(["-d", "27", "-c", "2d", "--patch", "32"])
    assert (folder / "nnUNetPlansSmall.json").read_text() == before


def test_warns_of_padding(folder: Path, capsys):
    main(["-d", "27", "-c", "2d", "--patch", "512"])
    assert "patch axis 0 is 512 voxels" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dataset", "splits_final", "../x", "a__b", "", "notes"])
def test_no_other_file_is_overwritten(folder: Path, name: str):
    (folder / "notes.json").write_text("[1]")
    before = {path: path.read_text() for path in folder.rglob("*")}
    with pytest.raises(SystemExit, match="--name"):
        main(["-d", "27", "-c", "2d", "--name", name])
    assert {path: path.read_text() for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-d 28 -c 2d", "dataset 28: one folder of it is needed, found none"),
        ("-d 27 -c 2d -p Other", "Other.json does not exist; run first: nnUNetv2_plan_exp"),
        ("-d 27 -c 3d_fullres", "configuration is '3d_fullres'; the plans have 2d"),
        ("-d 27 -c 2d --batch 0", "batch is 0"),
    ],
)
def test_mistakes_end_with_one_message(folder: Path, arguments: str, message: str):
    with pytest.raises(SystemExit, match=message):
        main(arguments.split())
    assert [path.name for path in folder.iterdir()] == ["nnUNetPlans.json"]


def test_unset_variable_is_named(folder: Path, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(SystemExit, match="nnUNet_preprocessed is not set"):
        main(["-d", "27", "-c", "2d"])
