"""Arms of a study that start from a file of the user's: named, known by content, tried first."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted_study import plant

from nnssl.cli.study import main
from nnssl.common.files import hash_file
from nnssl.studies.report.page import write_report
from nnssl.studies.report.provenance import find_leaks
from nnssl.studies.run.folder import StudyFolder
from nnssl.studies.run.grid import list_cells
from nnssl.studies.run.spec import PretrainingArm, find_waiting, read_study, write_study
from nnssl.studies.run.weight_arms import give_weights
from tests.nnunet import networks

BYOL = PretrainingArm("nnSSLBYOLTrainer", {"num_epochs": 4}, (0, 1), after="ImageNet")
ARMS = """
pretraining:
  ImageNet: {waits: weights}
  hierarchical: {trainer: nnSSLBYOLTrainer, after: ImageNet, overrides: {num_epochs: 2}}
"""
STUDY = f"""
kind: study
study: {{dataset: 5, budgets: [1], repetitions: 1}}
{ARMS}
schedules:
  standard: {{overrides: {{num_epochs: 2, num_iterations_per_epoch: 5}}}}
"""
TUNED, CHAIN = "imagenet-p1-r0-f0-standard", "pretrain-nnSSLBYOLTrainer-s0-f0"


def with_file(study, weights: str = "/w/resnet.pth", sha256: str = "abc"):
    arm = PretrainingArm(weights=weights, sha256=sha256, finetuning={"weights.part": "encoder"})
    return replace(study, pretraining={"ImageNet": arm, "both": BYOL, **study.pretraining})


def test_fine_tuning_and_what_follows_are_told_the_file(study, monkeypatch, tmp_path):
    folder = StudyFolder(with_file(study), tmp_path)
    (tmp_path / "Dataset999_Tiny").mkdir()
    cells = {cell.id: cell for cell in folder.cells}
    tuned, first = cells[TUNED], cells[CHAIN]
    assert (tuned.needs, tuned.starts_from, tuned.pretraining_seed) == (None, "ImageNet", None)
    assert tuned.weights == first.weights == tuned.to_dict()["weights"] == "abc"
    assert folder.environment(tuned)["nnssl_pretrained_weights"] == "/w/resnet.pth"
    assert "weights.part=encoder" in folder.environment(tuned)["nnssl_overrides"]
    told = folder.environment(first)
    assert 'training.initial_weights="/w/resnet.pth"' in told["nnssl_overrides"]
    assert told["nnssl_pretrained_weights"] == ""
    assert cells["both-p1-r0-f0-standard"].needs == CHAIN
    assert not [cell for cell in folder.cells if cell.kind == "pretrain" and "magenet" in cell.id]
    assert folder.runs[TUNED] == TUNED


def test_two_files_are_two_runs_and_one_file_under_two_names_is_one(study, tmp_path):
    contents = {"a": "x", "b": "y", "c": "x"}
    arms = {name: PretrainingArm(weights="w.pth", sha256=sha) for name, sha in contents.items()}
    folder = StudyFolder(replace(study, pretraining=arms), tmp_path)
    runs = [folder.runs[f"{name}-p1-r0-f0-standard"] for name in "abc"]
    assert runs[0] == runs[2] != runs[1]


def test_a_file_adds_no_steps_to_scratch(study):
    grown = replace(with_file(study), scratch_added_steps=True)
    added = {cell.schedule for cell in list_cells(grown) if cell.role == "added_steps"}
    assert added == {"standard_and_500_steps", "standard_and_1000_steps"}


def test_without_its_file_an_arm_and_what_follows_are_left_out(write_study):
    study = read_study(write_study(STUDY))
    waiting = find_waiting(study)
    assert "--weights 'ImageNet=FILE'" in waiting["ImageNet"]
    assert waiting["hierarchical"] == "follows ImageNet, which is left out"
    assert {cell.method for cell in list_cells(study)} == {"scratch"}
    assert not find_waiting(give_weights(study, {"ImageNet": "a.pth"}))
    with pytest.raises(ValueError, match=r"found 'hierarchical'; .* take a file: ImageNet$"):
        give_weights(study, {"hierarchical": "a.pth"})


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (PretrainingArm(), "pretraining.X: neither trainer nor weights; allowed"),
        (PretrainingArm("nnSSLBYOLTrainer", weights="a.pth"), "X.trainer: found .* beside weights"),
        (PretrainingArm("nnSSLBYOLTrainer", waits="weights"), "beside weights; .*`after:`"),
        (PretrainingArm(weights="a", seeds=(1,), fold=2), "X: seeds, fold belong to a pre-train"),
    ],
)
def test_an_arm_pre_trains_or_is_a_file(study, tmp_path, arm, message):
    write_study(tmp_path / "wrong.yaml", replace(study, pretraining={"X": arm}))
    with pytest.raises(ValueError, match=message):
        read_study(tmp_path / "wrong.yaml")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch, write_study) -> tuple[list[str], Path]:
    """Arguments of a dry run on a data set that is planned, and a file that fits its network."""
    monkeypatch.setenv("nnssl_configs", "")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    dataset = tmp_path / "pre" / "Dataset005_Target"
    (dataset / "planned_2d").mkdir(parents=True)
    entry = networks.configuration([16, 16], [1.0, 1.0])
    (dataset / "nnUNetPlans.json").write_text(json.dumps(networks.plans(c2d=entry)))
    (dataset / "dataset.json").write_text(json.dumps(networks.dataset()))
    for case in "abcdef":
        np.save(dataset / "planned_2d" / f"{case}.npy", np.zeros((1, 3, 2, 2), np.float32))
        np.save(dataset / "planned_2d" / f"{case}_seg.npy", np.zeros((1, 3, 2, 2), np.int8))
    weights = networks.checkpoint(entry, "2d")["network_weights"]
    file = tmp_path / "imagenet.pth"
    torch.save({"state_dict": weights}, file)
    run = ["run", str(write_study(STUDY)), "-o", str(tmp_path / "out"), "--devices", "cpu"]
    return [*run, "--dry-run"], file


def test_a_dry_run_tries_the_file_and_prints_shares(asked, capsys, monkeypatch):
    run, file = asked
    assert main(run) == 0
    assert "left out: ImageNet waits for a file of weights" in capsys.readouterr().out
    monkeypatch.chdir(file.parent)
    assert main([*run, "--weights", f"ImageNet={file.name}"]) == 0
    printed = capsys.readouterr().out
    for method in ("ImageNet", "hierarchical"):
        assert f"{method}: {file} loads 100.0% of what it holds: 100.0% of the enc" in printed
    assert f"nnssl_pretrained_weights={file} " in printed
    assert f'training.initial_weights="{file}"' in printed


def test_what_a_run_would_refuse_is_told_first(asked, tmp_path):
    run, file = asked
    with pytest.raises(SystemExit, match=r"the weights of pretraining\.ImageNet: .*does not exist"):
        main([*run, "--weights", f"ImageNet={tmp_path / 'gone.pth'}"])
    torch.save({"layer.weight": torch.zeros(3)}, file)
    with pytest.raises(SystemExit, match=r"(?s)would stop at once:.*ImageNet: .*weights\.key_map"):
        main([*run, "--weights", f"ImageNet={file}"])
    wide = networks.configuration([16, 16], [1.0, 1.0], features=(16, 32, 32))
    torch.save(networks.checkpoint(wide, "2d"), file)
    with pytest.raises(SystemExit, match=r"(?s)at once:.*ImageNet: .*Only 0\.\d% of the wanted"):
        main([*run, "--weights", f"ImageNet={file}"])
    with pytest.raises(SystemExit):
        main([*run, "--weights", "ImageNet"])


def test_a_folder_keeps_its_file_by_content(asked, tmp_path, monkeypatch, capsys):
    run, file = asked
    real, name = [each for each in run if each != "--dry-run"], f"ImageNet={file}"
    jobs = ["--executor", "slurm"]
    monkeypatch.setattr("nnssl.studies.run.runner.submit", lambda *given: 0)
    assert main([*real, *jobs, "--weights", name]) == 0
    stored = read_study(tmp_path / "out" / "study.yaml").pretraining["ImageNet"]
    assert (stored.weights, stored.sha256) == (str(file), hash_file(file))
    assert main([*real, *jobs]) == 0  # it need not be named again
    moved = shutil.copy(file, tmp_path / "moved.pth")
    assert main([*real, *jobs, "--weights", f"ImageNet={moved}"]) == 0
    torch.save({"encoder.stages.0.0.convs.0.conv.weight": torch.zeros(4, 1, 3, 3)}, moved)
    with pytest.raises(SystemExit, match=r"has the SHA-256 .*; the study says .*Give the same"):
        main([*real, *jobs])


def test_the_report_names_the_file_and_no_folder(tmp_path: Path):
    file = tmp_path / "weights" / "resnet.pth"
    file.parent.mkdir()
    torch.save({"network_weights": {}}, file)
    arm = PretrainingArm(weights=str(file), sha256=hash_file(file))
    folder = plant(tmp_path, lambda cell, _: 0.7, pretraining={"ImageNet": arm})
    page = write_report(tmp_path / "study", images=False, workers=1).read_text()
    assert f"ImageNet starts from resnet.pth, SHA-256 {arm.sha256}" in page
    assert str(tmp_path) not in page
    ((title, found),) = find_leaks(folder).items()
    assert title == "ImageNet, evaluated on fold 0"
    assert [finding.verdict for finding in found.findings] == ["unknown"]
