"""Cells with the same command and settings are one run: planned, run and counted once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from planted_study import plant

from nnssl.studies.report.findings import collect_findings
from nnssl.studies.report.page import write_markdown
from nnssl.studies.run.devices import Slot, make_slots
from nnssl.studies.run.folder import StudyFolder
from nnssl.studies.run.local import LocalRunner
from nnssl.studies.run.runner import Selection, _print_commands
from nnssl.studies.run.spec import FinetuningArm, ScratchArm, read_study
from nnssl.studies.run.status import read_status

LONG = {"num_epochs": 3, "num_iterations_per_epoch": 10}
FIRST, SECOND = (f"scratch-p1-r0-f0-{name}" for name in ("standard", "decay"))
OWN = "gd-p1-r0-f0-decay"


@pytest.fixture
def shared(study_folder) -> StudyFolder:
    """Two schedules that differ in the trainer of what was pre-trained only."""
    arms = {"G^D": study_folder.study.pretraining["G^D"]}
    decay = FinetuningArm("nnSSLFinetuneLayerDecayTrainer", overrides=dict(reversed(LONG.items())))
    schedules = {**study_folder.study.schedules, "decay": decay}
    study = replace(study_folder.study, pretraining=arms, schedules=schedules, budgets=(1,))
    return replace(study_folder, study=replace(study, repetitions=1))


def test_twins_run_once_and_both_arms_have_the_result(shared, stage, capsys):
    shared.write()
    chosen = Selection().choose(shared)
    assert {cell.id for cell in shared.cells} - {cell.id for cell in chosen} == {SECOND}
    _print_commands(shared, chosen, [Slot()])
    assert f"# {FIRST}  (also {SECOND})\n" in capsys.readouterr().out
    assert LocalRunner(shared, chosen, make_slots(["cpu"], 2)).run().exit_code == 0
    assert (len(stage.starts(FIRST)), stage.starts(SECOND)) == (1, [])
    cells = {cell.id: cell for cell in shared.cells}
    assert shared.dice(cells[FIRST]) == shared.dice(cells[SECOND]) is not None
    assert shared.command(cells[FIRST]) == shared.command(cells[SECOND])
    assert cells[OWN].trainer == "nnSSLFinetuneLayerDecayTrainer"
    found = read_status(shared.path)
    assert found.counts == Counter(done=4)
    assert len([row for row in found.finetuning if row["method"] == "scratch"]) == 2


def test_other_settings_are_other_runs(shared):
    longer = FinetuningArm(overrides={**LONG, "num_epochs": 4})
    study = replace(shared.study, schedules={**shared.study.schedules, "longer": longer})
    runs = replace(shared, study=study).runs
    assert runs["scratch-p1-r0-f0-longer"] == "scratch-p1-r0-f0-longer"
    twice = replace(study, repetitions=2, budgets=(1, 2), folds=(0, 1))
    runs = replace(shared, study=twice).runs
    assert len({runs[name] for name in runs if name.endswith("-standard")}) == 2 * 8


def test_a_folder_in_which_both_have_run_keeps_both(shared):
    for cell in shared.cells:
        (shared.path / "cells" / cell.id).mkdir(parents=True)
    assert all(cell == run for cell, run in shared.runs.items())
    (shared.path / "cells" / FIRST).rmdir()
    again = replace(shared)  # nothing that was looked up before
    assert again.runs[FIRST] == again.runs[SECOND] == SECOND
    assert again.cell_folder(again.cells[1]).name == SECOND


def test_the_report_shows_every_arm_and_counts_the_run_once(tmp_path: Path):
    schedules = {name: FinetuningArm(overrides={"num_epochs": 2}) for name in ("short", "alike")}
    schedules["alike"] = replace(schedules["alike"], trainer="nnSSLFinetuneL2SPTrainer")
    longer = {"own": ScratchArm(overrides={"num_epochs": 2})}
    again = {f"scratch-p2-r{r}-f0-{name}" for r in range(3) for name in ("alike", "own")}
    changes = {"schedules": schedules, "scratch_schedules": longer, "skip": again}
    plant(tmp_path, lambda cell, _: 0.8 if cell.method == "M" else 0.6, **changes)
    found = collect_findings(tmp_path / "study", 2.0, workers=1)
    assert (len(found.records), len(found.runs), found.unfinished) == (16, 10, 0)
    pairs = [e for e in found.comparisons if e.baseline == "equal schedule"]
    assert {(e.schedule, e.scratch_schedule) for e in pairs} == {(n, n) for n in schedules}
    text = write_markdown(tmp_path / "study", workers=1)
    assert "| scratch | none | 3 x 0.50 h |" in text
    assert text.count("nnSSLScratchTrainer") == 3


def test_the_shipped_study_of_schedules_trains_four_twins_once(monkeypatch):
    monkeypatch.setenv("nnssl_configs", "")
    folder = StudyFolder(read_study("schedules"), Path("/s"))
    scratch = {cell.id for cell in folder.cells if cell.method == "scratch"}
    assert len(scratch) == 3 * 6
    assert len({folder.runs[name] for name in scratch}) == 3 * 3
