"""Pre-training in stages: chains of cells, from the study's file to the commands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nnssl.studies.run.devices import make_slots
from nnssl.studies.run.folder import StudyFolder
from nnssl.studies.run.grid import find_stages, list_cells
from nnssl.studies.run.local import LocalRunner
from nnssl.studies.run.runner import Selection
from nnssl.studies.run.slurm import _group_by_need
from nnssl.studies.run.spec import PretrainingArm, find_waiting, read_study, write_study
from nnssl.studies.run.status import read_status

NAMES = ("MAE", "LocalContrastive", "Contrastive")  # the last stage first
CHAIN = [f"pretrain-nnSSL{name}Trainer-s0-f0" for name in NAMES]
LOCAL = PretrainingArm("nnSSLLocalContrastiveTrainer", {"num_epochs": 4}, (0, 1), after="G^D")
THIRD = PretrainingArm("nnSSLMAETrainer", {"num_epochs": 8}, (0, 1), after="L^R")
TUNED = "three-p1-r0-f0-standard"


def stage(study, **more):
    """G^D, L^R from it, which is not fine-tuned, and a third from that."""
    arms = {**study.pretraining, "L^R": replace(LOCAL, measured=False), "three": THIRD}
    return replace(study, pretraining=arms | more)


@pytest.fixture
def staged(study_folder):
    """Of one repetition and budget; `choose` takes what the third needs."""
    study = replace(stage(study_folder.study), budgets=(1,), repetitions=1)
    return replace(study_folder, study=study)


def test_every_stage_needs_the_one_before_and_fine_tuning_the_last(study):
    grown = replace(stage(study), scratch_added_steps=True)
    grid = {cell.id: cell for cell in list_cells(grown)}
    assert all(grid[cell.id] == cell for cell in list_cells(study))
    assert find_stages(grid[TUNED], grid) == CHAIN
    assert not [cell for cell in grid.values() if cell.kind == "finetune" and cell.method == "L^R"]
    added = {cell.schedule for cell in grid.values() if cell.role == "added_steps"}
    assert added == {"standard_and_500_steps", f"standard_and_{(2 + 4 + 8) * 250}_steps"}


def test_the_same_trainer_after_nothing_is_another_cell(study):
    grid = {c.id: c for c in list_cells(stage(study, alone=replace(LOCAL, after=None)))}
    own = "pretrain-nnSSLLocalContrastiveTrainer-alone-s0-f0"
    assert find_stages(grid["alone-p1-r0-f0-standard"], grid) == [own]


def test_a_stage_is_told_the_file_by_its_setting_and_fine_tuning_by_the_variable(staged):
    cells = {cell.id: cell for cell in staged.cells}
    file = staged.fold_folder(cells[CHAIN[2]]) / "checkpoint_final.pth"
    told = staged.environment(cells[CHAIN[1]])
    assert f'training.initial_weights="{file}"' in told["nnssl_overrides"]
    assert told["nnssl_pretrained_weights"] == ""
    assert "initial_weights" not in staged.environment(cells[CHAIN[2]])["nnssl_overrides"]
    tuned = staged.environment(cells[TUNED])
    assert tuned["nnssl_pretrained_weights"].startswith(str(staged.fold_folder(cells[CHAIN[0]])))
    assert "initial_weights" not in tuned["nnssl_overrides"]


def test_a_method_comes_with_all_its_stages_in_order(staged):
    chosen = [cell.id for cell in Selection(only=["three"]).choose(staged)]
    assert chosen == [*reversed(CHAIN), TUNED]
    groups = list(dict(_group_by_need(staged, staged.cells)))
    assert [name for name in groups if name in CHAIN] == [*reversed(CHAIN)]
    assert groups[0] is None


def test_stages_run_one_after_the_other_and_what_follows_a_failure_is_blocked(
    staged: StudyFolder, request
):
    stand_in = request.getfixturevalue("stage")
    stand_in.direct(fail={CHAIN[2]: 2})
    staged.write()
    cells = Selection(only=["three"]).choose(staged)
    outcome = LocalRunner(staged, cells, make_slots(["cpu"], 2)).run()
    assert outcome.blocked == dict.fromkeys((CHAIN[1], CHAIN[0], TUNED), CHAIN[2])
    assert read_status(staged.path).counts["blocked"] >= 3
    assert LocalRunner(staged, cells, make_slots(["cpu"], 2)).run().exit_code == 0
    ends = [call["cell"] for call in stand_in.calls() if call["event"] == "end"]
    assert ends[-4:] == [*reversed(CHAIN), TUNED]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"after": "G^X"}, r"after = 'G\^X': no such arm stands above"),
        ({"after": "three"}, "after = 'three': no such arm stands above"),
        ({"seeds": (0,)}, r"seeds: found \[0\], allowed: \[0, 1\], as G\^D"),
        ({"fold": "all"}, r"fold: found 'all', allowed: None, as G\^D"),
        ({"overrides": {"initial_weights": "x.pth"}}, r"the weights are those of G\^D; remove"),
    ],
)
def test_chains_that_cannot_be_are_refused(study, tmp_path, change, message):
    arms = {
        **study.pretraining,
        "L^R": replace(LOCAL, **change),
        "three": replace(THIRD, after="G^D"),
    }
    write_study(tmp_path / "wrong.yaml", replace(study, pretraining=arms))
    with pytest.raises(ValueError, match=message):
        read_study(tmp_path / "wrong.yaml")


def test_what_follows_an_arm_that_waits_waits_too(study):
    later = PretrainingArm("nnSSLLaterTrainer", waits="trainer")
    waiting = find_waiting(stage(study, later=later, more=replace(LOCAL, after="later")))
    assert waiting["more"] == "follows later, which is left out"


def test_the_shipped_studies_of_chaitanya_wait_for_nothing():
    for name in ("chaitanya", "contrastive", "quick"):
        found = read_study(name)
        cells = {cell.id: cell for cell in list_cells(found)}
        tuned = next(c for c in cells.values() if c.method == "G^D then L^R" and c.budget)
        local, first = find_stages(tuned, cells)
        assert cells[local].trainer == "nnSSLLocalContrastiveTrainer"
        assert cells[first].trainer == "nnSSLContrastiveTrainer"
    assert find_waiting(read_study("chaitanya")) == {}
