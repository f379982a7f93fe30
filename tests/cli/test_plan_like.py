"""``nnssl_plan_like`` as a user meets it; the arithmetic is tested in tests/nnunet."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from nnssl.cli.plan_like import main
from tests.nnunet.networks import checkpoint, configuration, dataset, plans


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    folder = tmp_path / "Dataset005_Target"
    folder.mkdir()
    content = plans(
        c2d=configuration([52, 40], [1.0, 1.0], channels=2),
        c3d_fullres=configuration([8, 16, 16], [1.0, 1.0, 1.0], channels=2),
    )
    (folder / "nnUNetPlans.json").write_text(json.dumps(content))
    (folder / "dataset.json").write_text(json.dumps(dataset(channels=2)))
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(checkpoint(configuration([32, 32], [2.0, 2.0], (4, 8)), "2d"), tmp_path / "a.pth")
    return tmp_path / "a.pth"


def plan(file: Path, options: str = "") -> None:
    main([str(file), "-d", "5", *shlex.split(options)])


def test_writes_plans_and_says_what_next(folder: Path, file: Path, capsys):
    plan(file)
    new = json.loads((folder / "nnUNetPlansLikePool.json").read_text())
    assert new["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] == [
        4,
        8,
    ]
    said = capsys.readouterr()
    assert "of the pre-trained encoder 100% load" in said.out
    assert "next: nnUNetv2_preprocess -d 5 -plans_name nnUNetPlansLikePool -c 2d" in said.out
    assert f"nnssl_pretrained_weights={file} nnUNetv2_train 5 2d 0" in said.out
    assert "-tr nnSSLFinetuneTrainer -p nnUNetPlansLikePool" in said.out
    assert "note: the checkpoint has 1 input channels, the target 2" in said.err
    assert "trained with [2.0, 2.0], today's plans say [1.0, 1.0]" in said.err
    plan(file)  # the same plans once more are no conflict


def test_no_other_plans_are_overwritten(folder: Path, file: Path):
    before = (folder / "nnUNetPlans.json").read_text()
    plan(file, "--name Mine")
    mine = (folder / "Mine.json").read_text()
    with pytest.raises(SystemExit, match=r"Mine\.json exists already and says something else"):
        plan(file, "--name Mine --keep spacing")
    with pytest.raises(SystemExit, match="name is 'nnUNetPlans', that of the plans"):
        plan(file, "--name nnUNetPlans")
    (folder / "Other.json").write_text(mine.replace("Mine_2d", "Theirs_2d"))
    with pytest.raises(SystemExit, match=r"Other\.json keeps its cases in \['Theirs_2d'\] too"):
        plan(file, "--name Theirs")
    assert (folder / "Mine.json").read_text() == mine
    assert (folder / "nnUNetPlans.json").read_text() == before
    assert not (folder / "Theirs.json").exists()


def test_the_name_in_a_checkpoint_leads_nowhere_else(folder: Path, file: Path):
    content = torch.load(file, weights_only=True)
    content["nnssl"]["dataset"] = "../../../x"
    torch.save(content, file)
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(SystemExit, match=r"nnssl\.dataset: found '\.\./\.\./\.\./x'"):
        plan(file)
    assert sorted(folder.parent.rglob("*")) == before


def damaged(file: Path, how: str) -> None:
    content = torch.load(file, weights_only=True)
    if how == "cut off":
        file.write_bytes(file.read_bytes()[:-500])
    elif how == "other weights":
        content["network_weights"] = {
            f"other.{key}": value for key, value in content["network_weights"].items()
        }
        torch.save(content, file)
    else:
        file.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "does not exist; give the path of a checkpoint"),
        ("cut off", "cannot be read as a checkpoint"),
        ("other weights", "have no names of nnU-Net's U-Nets"),
    ],
)
def test_damaged_checkpoints(folder: Path, file: Path, how: str, message: str):
    damaged(file, how)
    with pytest.raises(SystemExit, match=message):
        plan(file)
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "nnUNetPlans.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-c 3d_fullres", r"a 2D network \(configuration 2d\), 3d_fullres is 3D"),
        ("-c 3d_lowres", "configuration is '3d_lowres'; the plans have 2d, 3d_fullres"),
        ("-p Other", r"Other\.json does not exist; run first: nnUNetv2_plan_experiment -d 5"),
        ("--keep normalisation", "normalisation cannot be kept"),
    ],
)
def test_mistakes_end_with_one_message(folder: Path, file: Path, options: str, message: str):
    with pytest.raises(SystemExit, match=message):
        plan(file, options)
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "nnUNetPlans.json"]
