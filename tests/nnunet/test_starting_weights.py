"""Weights are named or found, never guessed."""

from __future__ import annotations

import pytest
import torch

from nnssl.common.environment import set_variables
from nnssl.nnunet.checkpoint import read_checkpoint, save_atomically
from nnssl.nnunet.paths import WEIGHTS
from nnssl.nnunet.runs import RunLocation, WeightSource, find_finished_run, find_named_file


@pytest.fixture
def place(tmp_path):
    return RunLocation(tmp_path / "Dataset001_A", "nnUNetPlans", "2d", 0)


def run(place, trainer="nnSSLContrastiveTrainer", kind="pretrain", name="final", **other):
    values = {
        "plans": place.plans,
        "configuration": place.configuration,
        "fold": place.fold,
        **other,
    }
    folder = place.results / f"{trainer}__{values['plans']}__{values['configuration']}"
    file = folder / f"fold_{values['fold']}" / f"checkpoint_{name}.pth"
    file.parent.mkdir(parents=True)
    save_atomically({"network_weights": {"a": torch.zeros(1)}, "nnssl": {"kind": kind}}, file)
    return file


def test_the_one_finished_run_is_found(place):
    file = run(place)
    run(place, "nnSSLFinetuneTrainer", kind="finetune")
    assert find_finished_run(place, None) == file


@pytest.mark.parametrize(
    "other", [{"fold": 1}, {"fold": "all"}, {"plans": "other"}, {"configuration": "3d_fullres"}]
)
def test_other_folds_plans_and_configurations_are_not_found(place, other):
    run(place, **other)
    with pytest.raises(FileNotFoundError) as caught:
        find_finished_run(place, None)
    command = "nnUNetv2_train Dataset001_A 2d 0 -p nnUNetPlans -tr nnSSLContrastiveTrainer"
    assert command in str(caught.value)
    assert "nnssl_pretrained_weights" in str(caught.value)


def test_stock_models_and_unfinished_runs_are_not_found(place):
    run(place, "nnUNetTrainer")
    run(place, "nnSSLBYOLTrainer", name="latest")
    with pytest.raises(FileNotFoundError, match=r"not finished; .*-tr nnSSLBYOLTrainer --c"):
        find_finished_run(place, None)


def test_several_are_listed_with_the_line_to_choose_each(place):
    files = [run(place), run(place, "nnSSLBYOLTrainer")]
    with pytest.raises(ValueError, match="2 finished pre-training runs") as caught:
        find_finished_run(place, None)
    for file in files:
        assert f"export nnssl_pretrained_weights={file}" in str(caught.value)
    assert "weights: {trainer: nnSSLBYOLTrainer}" in str(caught.value)
    assert find_finished_run(place, "nnSSLBYOLTrainer") == files[1]
    with pytest.raises(FileNotFoundError, match="-tr nnSSLMAETrainer"):
        find_finished_run(place, "nnSSLMAETrainer")


def test_lines_to_copy_bear_a_space_in_the_path(tmp_path):
    place = RunLocation(tmp_path / "my runs", "nnUNetPlans", "2d", 0)
    files = [run(place), run(place, "nnSSLBYOLTrainer")]
    with pytest.raises(ValueError, match="Choose one of") as caught:
        find_finished_run(place, None)
    assert f"export nnssl_pretrained_weights='{files[0]}'" in str(caught.value)


def test_a_folder_of_several_models_is_named_with_the_files_in_it(place):
    file = run(place)
    assert find(WeightSource(), str(file.parent)) == file  # of one model it stands for that
    run(place, fold=1)
    for folder in (file.parent.parent,):
        with pytest.raises(
            FileNotFoundError, match=r"is a folder, it holds .*name a file"
        ) as caught:
            find(WeightSource(), str(folder))
        assert str(file) in str(caught.value)
        with pytest.raises(FileNotFoundError, match="is a folder"):
            read_checkpoint(folder)


def find(knobs, named_in_environment):
    with set_variables({WEIGHTS: named_in_environment or ""}):
        return find_named_file(knobs)


def test_names_from_yaml_and_environment(tmp_path):
    a, b = tmp_path / "a.pth", tmp_path / "b.pth"
    for file in (a, b):
        file.touch()
    in_yaml = WeightSource(source=str(a))
    assert find(WeightSource(), None) is None
    assert find(WeightSource(source="none"), None) is None
    assert find(WeightSource(), str(b)) == b
    assert find(in_yaml, None) == a
    assert find(in_yaml, f"{tmp_path}/./a.pth").samefile(a)
    with pytest.raises(ValueError, match="Remove one of them"):
        find(in_yaml, str(b))
    with pytest.raises(ValueError, match=r"weights\.source is 'none'"):
        find(WeightSource(source="none"), str(b))
    with pytest.raises(FileNotFoundError, match="environment variable"):
        find(WeightSource(), str(tmp_path / "c.pth"))


def test_bad_knobs():
    with pytest.raises(ValueError, match="min_share = 0 must be a number above 0 and at most 1"):
        WeightSource(min_share=0)
    with pytest.raises(ValueError, match="stages = 0 must be an integer of at least 1 or null"):
        WeightSource(stages=0)
