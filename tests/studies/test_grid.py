"""The cells: exact commands, scratch beside every method, stable names, nested budgets."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from nnssl.config.overrides import _parse_overrides, write_overrides
from nnssl.data.labels import LabelBudget, choose_labelled
from nnssl.nnunet.cases import CaseRecord
from nnssl.studies.run.folder import StudyFolder
from nnssl.studies.run.grid import list_cells
from nnssl.studies.run.spec import PretrainingArm, ScratchArm, read_study

FINETUNING = (
    "num_epochs=8 num_iterations_per_epoch=250 num_val_iterations_per_epoch=1 training.seed={r} "
    "labels.patients=2 labels.seed={r}"
)
PRETRAINING = (
    "num_epochs=40 num_iterations_per_epoch=250 num_val_iterations_per_epoch=4 "
    "probe_every=20 training.seed=0"
)


def by_id(study):
    return {cell.id: cell for cell in list_cells(study)}


def test_the_quick_study_runs_exactly_these_commands(tmp_path, monkeypatch):
    """As results.md was measured by hand; finished folders can be put in and count as done."""
    monkeypatch.setenv("nnssl_configs", "")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    (tmp_path / "Dataset027_ACDC").mkdir()
    quick = StudyFolder(read_study("quick"), Path("/s"))
    grid = by_id(quick.study)
    pretrain = grid["pretrain-nnSSLContrastiveTrainer-s0-f0"]
    end = "27 2d 0 -p nnUNetPlansSmall -tr"
    assert " ".join(quick.command(pretrain)) == f"nnUNetv2_train {end} nnSSLContrastiveTrainer"
    folder = Path("/s/cells") / pretrain.id
    assert quick.environment(pretrain) == {
        "nnUNet_results": str(folder),
        "nnssl_overrides": PRETRAINING,
        "nnssl_pretrained_weights": "",
    }
    fold = "Dataset027_ACDC/nnSSLContrastiveTrainer__nnUNetPlansSmall__2d/fold_0"
    for r in range(3):
        for method, trainer, weights in (
            ("gd", "nnSSLFinetuneTrainer", str(folder / fold / "checkpoint_final.pth")),
            ("scratch", "nnSSLScratchTrainer", ""),
        ):
            cell = grid[f"{method}-p2-r{r}-f0-standard"]
            assert " ".join(quick.command(cell)) == f"nnUNetv2_train {end} {trainer}"
            assert quick.environment(cell) == {
                "nnUNet_results": f"/s/cells/{cell.id}",
                "nnssl_overrides": FINETUNING.format(r=r),
                "nnssl_pretrained_weights": weights,
            }
    assert "gd-p2-r3-f0-standard" not in grid


def test_names_are_unique_file_names_and_needs_come_first(study):
    for each in (study, read_study("chaitanya"), read_study("ssl_medseg")):
        grid = list_cells(each)
        names = [cell.id for cell in grid]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[\w.-]+", name) for name in names)
        for number, cell in enumerate(grid):
            assert cell.needs is None or cell.needs in names[:number]


def test_every_beginning_of_the_grid_is_a_useful_study(study):
    """Scratch stands before the methods, and a repetition is whole before the next begins."""
    grid = list_cells(replace(study, folds=(0, 1)))
    tuned = [c for c in grid if c.kind == "finetune"]
    assert [c.method for c in tuned[:3]] == ["scratch", "G^D", "G^R"]
    assert [c.repetition for c in tuned] == sorted(c.repetition for c in tuned)
    first = [c.id for c in grid].index("scratch-p1-r0-f1-standard")
    assert "pretrain-nnSSLContrastiveTrainer-s1-f0" not in [c.id for c in grid[:first]]


def test_growing_a_study_keeps_every_cell(study):
    small = by_id(study)
    more = {"A": PretrainingArm("nnSSLContrastiveGDMinusTrainer"), **study.pretraining}
    large = by_id(replace(study, folds=(1, 0), budgets=(8, 1, 2), repetitions=5, pretraining=more))
    assert all(large[name] == cell for name, cell in small.items())
    assert len(large) > len(small)


def test_scratch_is_trained_by_every_schedule_with_the_same_knobs(study):
    grid = by_id(study)
    tuned = [c for c in grid.values() if c.method == "G^D" and c.kind == "finetune"]
    assert len(tuned) == 4
    for cell in tuned:
        alike = grid[cell.id.replace("gd", "scratch")]
        assert alike.overrides == cell.overrides
        assert (alike.needs, alike.trainer, alike.role) == (None, "nnSSLScratchTrainer", "main")
        assert cell.overrides["training.seed"] == cell.overrides["labels.seed"] == cell.repetition


def test_repetitions_take_the_seeds_of_pretraining_in_turn(study):
    grid = by_id(replace(study, repetitions=3))
    seeds = [grid[f"gd-p1-r{r}-f0-standard"].pretraining_seed for r in range(3)]
    assert seeds == [0, 1, 0]
    for seed in (0, 1):
        assert grid[f"pretrain-nnSSLContrastiveTrainer-s{seed}-f0"].overrides == {
            "num_epochs": 2,
            "training.seed": seed,
        }


def test_arms_that_pretrain_alike_share_it_and_others_do_not(study):
    arms = dict(study.pretraining)
    alike = replace(arms["G^D"], finetuning={"weights.part": "trained"})
    other = replace(arms["G^D"], overrides={"num_epochs": 5})
    grid = by_id(replace(study, pretraining={**arms, "whole": alike, "long": other}))
    shared = "pretrain-nnSSLContrastiveTrainer-s0-f0"
    assert grid["gd-p1-r0-f0-standard"].needs == grid["whole-p1-r0-f0-standard"].needs == shared
    assert grid["whole-p1-r0-f0-standard"].overrides["weights.part"] == "trained"
    assert "weights.part" not in grid["scratch-p1-r0-f0-standard"].overrides
    own = grid["long-p1-r0-f0-standard"].needs
    assert own == "pretrain-nnSSLContrastiveTrainer-long-s0-f0"
    assert grid[own].overrides["num_epochs"] == 5


def test_scratch_is_tried_with_schedules_of_its_own_and_with_added_steps(study):
    own = {"long": ScratchArm(overrides={"num_epochs": 9})}
    grid = by_id(replace(study, scratch_schedules=own, scratch_added_steps=True))
    long = grid["scratch-p2-r1-f0-long"]
    assert (long.role, long.overrides["num_epochs"]) == ("own_schedule", 9)
    added = [cell for cell in grid.values() if cell.role == "added_steps"]
    assert len(added) == 4
    for cell in added:
        alike = grid[cell.id.replace("standard_and_500_steps", "standard")]
        assert cell.steps == alike.steps + 2 * 250
        assert {**cell.overrides, "num_epochs": 3} == alike.overrides
    assert list(grid)[-4:] == [cell.id for cell in added]


def test_pretraining_on_another_dataset(study):
    arm = PretrainingArm("nnSSLContrastiveTrainer", dataset=30, plans="nnUNetPlansPool", fold="all")
    pooled = replace(study, pretraining={"pool": arm})
    grid = by_id(pooled)
    cell = grid["pretrain-nnSSLContrastiveTrainer-s0-fall"]
    line = "nnUNetv2_train 30 2d all -p nnUNetPlansPool -tr nnSSLContrastiveTrainer"
    assert " ".join(StudyFolder(pooled, Path("/s")).command(cell)) == line
    assert grid["pool-p1-r1-f0-standard"].needs == cell.id


@pytest.mark.parametrize(
    "value", [1, 2.5, 1e-05, True, None, "search", "a b'c", "1", "null", [24, 24], {"a": [0.8, 2]}]
)
def test_overrides_give_their_values_back(value):
    text = write_overrides({"x.y": value, "z": 1})
    assert dict(_parse_overrides(text, [])) == {"x.y": value, "z": 1}


def test_budgets_of_one_repetition_are_nested(study):
    records = {
        f"p{p}_{f}": CaseRecord(patient=f"p{p}", dataset="d") for p in range(9) for f in "ab"
    }
    for unit in ("patients", "volumes", "slices", "percentage"):
        budgets = (1, 3, 8) if unit != "percentage" else (12, 50, 100)
        grid = list_cells(replace(study, unit=unit, budgets=budgets))
        for repetition in range(2):
            chosen = []
            for cell in grid:
                if cell.method == "G^D" and cell.repetition == repetition:
                    knobs = {k[7:]: v for k, v in cell.overrides.items() if k[:7] == "labels."}
                    budget = LabelBudget(**knobs)
                    labelled = choose_labelled(budget, list(records), records, lambda _: 5)
                    slices = labelled.slices or {case: range(5) for case in labelled.cases}
                    chosen.append({(case, i) for case, some in slices.items() for i in some})
            assert len(chosen) == 3
            assert all(small < large for small, large in pairwise(chosen))
