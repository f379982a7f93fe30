"""A small study, and a stand-in for `nnUNetv2_train` that only writes nnU-Net's files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nnssl.studies.run.folder import StudyFolder
from nnssl.studies.run.spec import Study, read_study

__all__ = ["stage", "study", "study_folder", "write_study"]

STANDIN = Path(__file__).parent / "standin.py"
PROGRAM = (sys.executable, "-S", str(STANDIN))
STUDY = """
kind: study
about: {summary: small}
study:
  dataset: Dataset999_Tiny
  plans: nnUNetPlans
  unit: patients
  budgets: [1, 2]
  repetitions: 2
pretraining:
  G^D: {trainer: nnSSLContrastiveTrainer, seeds: [0, 1], overrides: &pre {num_epochs: 2}}
  G^R: {trainer: nnSSLContrastiveGRTrainer, overrides: *pre}
schedules:
  standard: {overrides: {num_epochs: 3, num_iterations_per_epoch: 10}}
"""


@dataclass
class Stage:
    """Where a stand-in plays: what it shall do, and what it has done."""

    folder: Path

    def direct(self, seconds: float = 0.0, fail: dict[str, int] | None = None) -> None:
        """Seconds per epoch; cell -> how many of its first calls fail."""
        content = {"seconds": seconds, "fail": fail or {}}
        (self.folder / "directions.json").write_text(json.dumps(content))

    def calls(self) -> list[dict[str, Any]]:
        """Starts and ends of processes, in order."""
        file = self.folder / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def starts(self, cell: str) -> list[dict[str, Any]]:
        return [c for c in self.calls() if c["cell"] == cell and c["event"] == "start"]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    folder = tmp_path / "stage"
    folder.mkdir()
    monkeypatch.setenv("STANDIN_FOLDER", str(folder))
    monkeypatch.setenv("nnssl_configs", "")
    stage = Stage(folder)
    stage.direct()
    return stage


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., Path]:
    """`write_study(text=STUDY, name="small")` writes a study file."""

    def write(text: str = STUDY, name: str = "small") -> Path:
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        return file

    return write


@pytest.fixture
def study(write_study, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("nnssl_configs", "")
    return read_study(write_study())


@pytest.fixture
def study_folder(study: Study, stage: Stage, tmp_path: Path) -> StudyFolder:
    """The small study with the stand-in."""
    return StudyFolder(study, tmp_path / "out", PROGRAM)
