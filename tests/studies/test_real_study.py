"""A real study through `nnUNetv2_train`, killed twenty times, equal to the uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from nnssl.common.files import read_json
from nnssl.nnunet import registration
from nnssl.studies.run.folder import open_study
from tests.kills import read_content

STUDY = """
kind: study
about: {summary: real}
study: {dataset: 999, budgets: [1], repetitions: 1}
pretraining:
  G^R:
    trainer: nnSSLContrastiveGRTrainer
    overrides: {num_epochs: 3, num_iterations_per_epoch: 4, num_val_iterations_per_epoch: 1}
schedules:
  standard:
    overrides: {num_epochs: 4, num_iterations_per_epoch: 6, num_val_iterations_per_epoch: 1}
"""
MOST_SECONDS = 600
KILLS = 20


def start(file: Path, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "nnssl.cli.study", "run", file, "-o", folder]
    command += ["--only", "G^R", "--devices", "cpu"]
    return subprocess.Popen(command, start_new_session=True)


def scores(folder: Path) -> dict:
    """Dice of every case and structure of the fine-tuned cell."""
    study = open_study(folder)
    tuned = next(cell for cell in study.cells if cell.method == "G^R" and cell.needs)
    summary = read_json(study.fold_folder(tuned) / "validation" / "summary.json")
    return {Path(c["reference_file"]).name: c["metrics"] for c in summary["metric_per_case"]}


def made(folder: Path) -> dict:
    """Every checkpoint, history and prediction of both trainings, bit by bit.

    Hashes of a checkpoint's file are of the times in it, too.
    """
    study, found = open_study(folder), {}
    for cell in [cell for cell in study.cells if cell.method == "G^R"]:
        content = read_content(study.fold_folder(cell), "study")
        found |= {
            f"{cell.id} {name}": value for name, value in content.items() if "sha256" not in name
        }
    assert any("checkpoint_final.pth/network_weights" in name for name in found)
    return {name: value.replace(str(folder), "") for name, value in found.items()}


def running_trainings(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder / "cells").encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not registration.supports_external(), reason="needs nnUNet_extTrainer")
def test_killed_twenty_times_the_study_gives_the_same_scores(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("nnssl_configs", "")
    monkeypatch.setenv("nnUNet_extTrainer", str(registration.EXTERNAL_FOLDER))
    monkeypatch.delenv("nnUNet_results")
    file = tmp_path / "real.yaml"
    file.write_text(STUDY)
    assert start(file, tmp_path / "whole").wait(MOST_SECONDS) == 0
    moments = random.Random(0)
    hit = 0
    for number in range(KILLS):
        runner = start(file, tmp_path / "killed")
        time.sleep(moments.uniform(0, 25))
        hit += runner.poll() is None
        runner.kill()
        runner.wait()
        if number % 3:  # else the training goes on alone, and the next runner waits for it
            for process in running_trainings(tmp_path / "killed"):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
    assert start(file, tmp_path / "killed").wait(MOST_SECONDS) == 0
    print(f"{hit} of {KILLS} kills hit a running study")
    assert scores(tmp_path / "killed") == scores(tmp_path / "whole")
    killed, whole = made(tmp_path / "killed"), made(tmp_path / "whole")
    differing = [k for k in {**killed, **whole} if killed.get(k) != whole.get(k)]
    assert not differing, "\n".join(differing)
