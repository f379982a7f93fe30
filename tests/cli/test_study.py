"""`nnssl_study`: what a user types and sees."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnssl.cli.study import main
from nnssl.studies.run.slurm import JobLimits

STUDY = """
kind: study
about: {summary: small}
study: {dataset: 999, budgets: [1], repetitions: 1}
pretraining:
  G^D: {trainer: nnSSLContrastiveTrainer, overrides: {num_epochs: 2, num_iterations_per_epoch: 3}}
  later: {trainer: nnSSLLaterTrainer, waits: trainer}
schedules:
  standard: {overrides: {num_epochs: 2, num_iterations_per_epoch: 5}}
"""


def write_dataset(dataset: Path) -> None:
    """Four patients of two frames each, of which each of two folds validates one."""
    cases = {f"p{p}_{f}": {"patient": f"p{p}", "dataset": "Tiny"} for p in range(4) for f in "ab"}
    train = [[case for case in cases if case[1] != str(fold)] for fold in range(2)]
    splits = [{"train": t, "val": sorted({*cases} - {*t})} for t in train]
    plans = {"configurations": {"2d": {"data_identifier": "nnUNetPlans_2d"}}}
    (dataset / "nnssl").mkdir(parents=True)
    (dataset / "nnUNetPlans_2d").mkdir()
    for name, content in (
        ("splits_final.json", splits),
        ("nnUNetPlans.json", plans),
        ("nnssl/cases.json", {"cases": cases}),
    ):
        (dataset / name).write_text(json.dumps(content))
    for case in cases:
        np.save(dataset / "nnUNetPlans_2d" / f"{case}.npy", np.zeros((1, 3, 2, 2), np.float32))
        np.save(dataset / "nnUNetPlans_2d" / f"{case}_seg.npy", np.zeros((1, 3, 2, 2), np.int8))


@pytest.fixture
def study_file(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("nnssl_configs", "")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    write_dataset(tmp_path / "Dataset999_Tiny")
    file = tmp_path / "small.yaml"
    file.write_text(STUDY)
    return file


def test_dry_run_prints_commands_to_copy_and_writes_nothing(study_file, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["run", str(study_file), "-o", str(folder), "--dry-run", "--devices", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "left out: later waits for the trainer nnSSLLaterTrainer" in printed
    assert "3 of 3 cells to do, 26 steps: about 0.0 hours" in printed
    assert "0.15 s per step ASSUMED" in printed
    assert not folder.exists()
    lines = [line for line in printed.splitlines() if line.startswith("env ")]
    scratch = shlex.split(lines[1])
    assert scratch[1:3] == ["-u", "nnssl_pretrained_weights"]
    assert "nnssl_overrides=num_epochs=2 num_iterations_per_epoch=5 training.seed=0 " in " ".join(
        scratch
    )
    assert f"nnUNet_results={folder}/cells/scratch-p1-r0-f0-standard" in scratch
    assert scratch[-10:-4] == ["nnUNetv2_train", "999", "2d", "0", "-p", "nnUNetPlans"]
    assert any(word.endswith("fold_0/checkpoint_final.pth") for word in shlex.split(lines[2]))


def test_a_copied_line_is_what_a_shell_runs(study_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("nnssl_pretrained_weights", "left from before")
    assert main(["run", str(study_file), "-o", str(tmp_path / "o"), "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("env ")]
    line = lines[1].replace("nnUNetv2_train", "env")
    line = line[: line.index(" 999")]
    shown = subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout
    assert "nnssl_pretrained_weights" not in shown
    wanted = (
        "num_epochs=2 num_iterations_per_epoch=5 training.seed=0 labels.patients=1 labels.seed=0"
    )
    assert f"nnssl_overrides={wanted}\n" in shown


def test_overrides_are_checked_before_anything_runs(study_file, tmp_path):
    text = STUDY.replace("num_epochs: 2, num_iterations_per_epoch: 5", "num_epoch: 2")
    study_file.write_text(text.replace("num_epochs: 2, num", "patch_size: x, num"))
    with pytest.raises(SystemExit) as ended:
        main(["run", str(study_file), "-o", str(tmp_path / "out")])
    told = str(ended.value)
    assert "'num_epoch' is no knob (did you mean training.num_epochs" in told
    assert "training.patch_size = 'x'" in told
    assert not (tmp_path / "out").exists()


def test_settings_that_contradict_each_other_are_told_before_anything_runs(study_file, tmp_path):
    study_file.write_text(STUDY.replace("num_epochs: 2", "warmup_epochs: 3, num_epochs: 2"))
    with pytest.raises(SystemExit, match=r"would stop at once:(?s:.*)the run would end before"):
        main(["run", str(study_file), "-o", str(tmp_path / "out"), "--dry-run"])


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ("budgets: [1, 50]", "fold 0 of Dataset999_Tiny: labels.patients: found 50, .* 1 to 3"),
        ("budgets: [7], unit: volumes", "fold 0 .* found 7, but this fold has 6 volumes"),
        ("budgets: [19], unit: slices", "fold 0 .* found 19, but this fold has 18 slices"),
        ("budgets: [1], folds: [1, 2]", "fold 2 of .*: there are 2 folds; allowed are 0 to 1"),
        ("budgets: [1], plans: nnUNetPlan", r"nnUNetPlan.json does not exist; .*'nnUNetPlans'"),
        ("budgets: [1], configuration: 3d_fullres", "found '3d_fullres'; .* has 2d"),
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_what_the_data_forbid_is_told_before_anything_runs(study_file, tmp_path, knobs, told, dry):
    study_file.write_text(STUDY.replace("budgets: [1]", knobs))
    with pytest.raises(SystemExit, match=f"(?s)would stop at once:.*{told}"):
        main(["run", str(study_file), "-o", str(tmp_path / "out"), *dry])
    assert not (tmp_path / "out").exists()


def test_folds_that_will_be_drawn_are_foreseen(study_file, tmp_path):
    """Four patients give four folds; without records nnU-Net draws five, case by case."""
    dataset = tmp_path / "Dataset999_Tiny"
    (dataset / "splits_final.json").unlink()
    study_file.write_text(STUDY.replace("budgets: [1]", "budgets: [3], folds: [3]"))
    run = ["run", str(study_file), "-o", str(tmp_path / "out"), "--dry-run"]
    assert main(run) == 0
    (dataset / "nnssl" / "cases.json").unlink()
    study_file.write_text(STUDY.replace("budgets: [1]", "budgets: [6], folds: [4]"))
    assert main(run) == 0
    assert not (dataset / "splits_final.json").exists()


def test_images_that_are_not_preprocessed_are_told(study_file, tmp_path):
    shutil.rmtree(tmp_path / "Dataset999_Tiny" / "nnUNetPlans_2d")
    with pytest.raises(SystemExit, match="nnUNetv2_preprocess -d 999 -plans_name nnUNetPlans"):
        main(["run", str(study_file), "-o", str(tmp_path / "out"), "--dry-run"])


def test_limits_of_slurm_reach_its_jobs(study_file, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("nnssl.studies.run.runner.submit", lambda *given: asked.append(given) or 0)
    run = ["run", str(study_file), "-o", str(tmp_path / "out"), "--executor", "slurm"]
    assert main([*run, "--hours", "2", "--gpus-per-task", "0", "--processes", "3"]) == 0
    ((folder, cells, limits),) = asked
    assert (folder.path, len(cells)) == (tmp_path / "out", 3)
    assert limits == JobLimits(hours=2.0, gpus_per_task=0, processes=3)


def test_a_dataset_that_is_not_there_is_told(study_file, tmp_path):
    study_file.write_text(STUDY.replace("999", "998"))
    with pytest.raises(SystemExit, match="dataset 998: one folder of it is needed, found none"):
        main(["run", str(study_file), "-o", str(tmp_path / "out")])


def test_list_and_status(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("nnssl_configs", "")
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in ("chaitanya", "quick", "radiossl", "ssl_medseg", "taleb", "universal"):
        assert f"\n{name} " in printed
    with pytest.raises(SystemExit, match="holds no study"):
        main(["status", str(tmp_path)])


def test_a_broken_study_does_not_hide_the_others(tmp_path, capsys, monkeypatch):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "broken.yaml").write_text("kind: study\nstudy: {}\n")
    monkeypatch.setenv("nnssl_configs", str(tmp_path))
    assert main(["list"]) == 1
    told = capsys.readouterr()
    assert "\nquick " in told.out
    assert "study.dataset" in told.err


def test_the_configuration_of_studies_is_read_without_torch():
    code = "import sys, nnssl.cli.study as s; s.main(['list']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
