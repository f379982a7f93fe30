"""A real study through `nnUNetv2_train`, killed three times, equal to the uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnssl.common.files import read_json
from nnssl.studies.run.folder import open_study

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
def test_killed_three_times_the_study_gives_the_same_scores(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("nnssl_configs", "")
    monkeypatch.delenv("nnUNet_results")
    file = tmp_path / "real.yaml"
    file.write_text(STUDY)
    assert start(file, tmp_path / "whole").wait(MOST_SECONDS) == 0
    length = random.Random(0)
    cells_folder = tmp_path / "killed" / "cells"
    for _ in range(3):
        before = len(list(cells_folder.glob("*/train_*.log")))
        runner = start(file, tmp_path / "killed")
        while runner.poll() is None and len(list(cells_folder.glob("*/train_*.log"))) == before:
            time.sleep(0.1)
        time.sleep(length.uniform(8, 15))
        runner.kill()
        runner.wait()
        for process in running_trainings(tmp_path / "killed"):
            os.kill(process, signal.SIGKILL)
    assert start(file, tmp_path / "killed").wait(MOST_SECONDS) == 0
    assert scores(tmp_path / "killed") == scores(tmp_path / "whole")
