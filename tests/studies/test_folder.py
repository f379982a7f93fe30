"""A study's folder may grow and not change; a part of a study can be chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nnssl.studies.run.folder import StudyFolder, grow_study, open_study
from nnssl.studies.run.grid import list_cells
from nnssl.studies.run.runner import Selection
from nnssl.studies.run.spec import PretrainingArm


def test_a_folder_holds_its_study(study, tmp_path):
    with pytest.raises(ValueError, match="holds no study"):
        open_study(tmp_path)
    assert grow_study(tmp_path, study) == study
    StudyFolder(study, tmp_path).write()
    assert open_study(tmp_path).study == study


def test_a_study_may_grow(study, tmp_path):
    StudyFolder(study, tmp_path).write()
    more = replace(
        study,
        budgets=(8, 1),
        repetitions=3,
        folds=(1,),
        pretraining={"new": PretrainingArm("nnSSLContrastiveGDMinusTrainer")},
    )
    both = grow_study(tmp_path, more)
    assert both.budgets == (1, 2, 8)
    assert both.folds == (0, 1)
    assert list(both.pretraining) == ["G^D", "G^R", "new"]
    assert {cell.id for cell in list_cells(study)} < {cell.id for cell in list_cells(both)}
    assert grow_study(tmp_path, replace(study, repetitions=1)).repetitions == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plans": "nnUNetPlansSmall"}, "plans: 'nnUNetPlans', now 'nnUNetPlansSmall'"),
        ({"unit": "volumes"}, "unit: 'patients', now 'volumes'"),
        ({"dataset": 27}, "dataset: 'Dataset999_Tiny', now 27"),
    ],
)
def test_a_study_may_not_change(study, tmp_path, change, message):
    StudyFolder(study, tmp_path).write()
    with pytest.raises(ValueError, match=message):
        grow_study(tmp_path, replace(study, **change))


def test_an_arm_may_not_change(study, tmp_path):
    StudyFolder(study, tmp_path).write()
    for arm, message in (
        (replace(study.pretraining["G^D"], overrides={"num_epochs": 3}), "'num_epochs': 2.* now"),
        (replace(study.pretraining["G^D"], seeds=(5,)), "not a cell any more"),
        (replace(study.pretraining["G^D"], finetuning={"warmup_epochs": 1}), "warmup_epochs"),
    ):
        changed = replace(study, pretraining={**study.pretraining, "G^D": arm})
        with pytest.raises(ValueError, match=message) as caught:
            grow_study(tmp_path, changed)
        assert "may grow" in str(caught.value)


def test_a_part_comes_with_the_pretrainings_it_needs(study_folder):
    part = Selection(repetitions=1, budgets=[2], only=["G^D", "scratch"])
    assert [cell.id for cell in part.choose(study_folder)] == [
        "pretrain-nnSSLContrastiveTrainer-s0-f0",
        "scratch-p2-r0-f0-standard",
        "gd-p2-r0-f0-standard",
    ]
    assert Selection().choose(study_folder) == study_folder.cells
    assert Selection(folds=[1]).choose(study_folder) == []
    with pytest.raises(ValueError, match=r"found 'G\^X'; this study has: scratch, G\^D, G\^R"):
        Selection(only=["G^X"]).choose(study_folder)


def test_numbers_beyond_the_file_extend_the_study(study):
    larger = Selection(folds=[1], repetitions=4, budgets=[8]).extend(study)
    assert (larger.folds, larger.repetitions, larger.budgets) == ((0, 1), 4, (1, 2, 8))
    assert Selection(repetitions=1).extend(study) == study
