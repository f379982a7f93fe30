"""The list of pre-trainings: states, metrics, commands, damaged files."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
import yaml

from nnssl.nnunet.checkpoint import save_atomically
from nnssl.nnunet.runs import RunLocation, find_finished_run, list_runs

TRAINING = {"num_epochs": 4, "num_iterations_per_epoch": 5}
HISTORY = {
    "train_loss": [3.0, 2.0],
    "val_loss": [3.5, None],
    "weight_change_stage_0": [0.0, 0.1],
    "weight_change_stage_1": [0.0, 0.3],
    "effective_rank": [9.0, 7.5],
    "collapse_loss": [1.0, 1.0],
}
DATASET = "Dataset999_Tiny"


@pytest.fixture
def write(tmp_path):
    """`write(trainer, file, kind=..., fold=...)`: a run's folder as a training leaves it."""

    def make(trainer, file="checkpoint_final.pth", kind="pretrain", fold="0", dataset=DATASET):
        folder = tmp_path / dataset / f"{trainer}__nnUNetPlans__2d" / f"fold_{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        head = {"name": trainer, "kind": kind, "about": {}, "sources": []}
        config = {**head, "sections": {"training": TRAINING}}
        (folder / "resolved_config.yaml").write_text(yaml.safe_dump(config))
        if file:
            own = {"kind": kind, "epoch": 2, "history": HISTORY, "config": config}
            weights = {"encoder.weight": torch.ones(50_000)}
            save_atomically({"network_weights": weights, "nnssl": own}, folder / file)
        return folder

    return make


def only(folder, **options):
    (run,) = list_runs(folder, **options)
    return run


def test_a_finished_run_with_metrics_and_the_line_that_uses_it(tmp_path, write):
    folder = write("nnSSLATrainer")
    (folder / "probe.json").write_text(
        json.dumps({"encoders": {"pretrained": {"dice": 0.5}, "random": {"dice": 0.1}}})
    )
    os.utime(folder / "checkpoint_final.pth", (0, time.mktime((2026, 5, 4, 3, 2, 0, 0, 0, -1))))
    run = only(tmp_path)
    assert (run.trainer, run.dataset, run.plans) == ("nnSSLATrainer", DATASET, "nnUNetPlans")
    assert (run.configuration, run.fold, run.state) == ("2d", "0", "finished")
    assert (run.epoch, run.epochs, run.date) == (2, 4, "2026-05-04 03:02")
    assert run.metrics == {
        "train_loss": 2.0,
        "effective_rank": 7.5,
        "weight_change": pytest.approx(0.2),
        "probe_dice": 0.5,
    }
    assert run.command == f"nnUNetv2_train {DATASET} 2d 0 -p nnUNetPlans -tr nnSSLFinetuneTrainer"
    place = RunLocation(tmp_path / DATASET, "nnUNetPlans", "2d", "0")
    assert find_finished_run(place, None) == folder / "checkpoint_final.pth"


def test_several_that_fit_are_named(tmp_path, write):
    """As the search would refuse to guess; another fold has its own."""
    folders = [write("nnSSLATrainer"), write("nnSSLBTrainer")]
    write("nnSSLATrainer", fold="all")
    write("nnSSLTunedTrainer", kind="finetune")
    first, second, other = list_runs(tmp_path)
    for run, folder in zip((first, second), folders, strict=True):
        name = f"export nnssl_pretrained_weights={folder / 'checkpoint_final.pth'}; nnUNetv2_train"
        assert run.command.startswith(name)
    assert other.command == first.command.split("; ")[1].replace("2d 0", "2d all")
    with pytest.raises(ValueError, match="2 finished pre-training runs fit"):
        find_finished_run(first.location, None)


def test_unfinished_is_continued_and_not_begun_is_started(tmp_path, write):
    write("nnSSLATrainer", "checkpoint_latest.pth")
    write("nnSSLBTrainer", "checkpoint_best.pth")
    write("nnSSLCTrainer", None)
    runs = list_runs(tmp_path)
    assert [run.state for run in runs] == ["unfinished", "unfinished", "not begun"]
    assert [run.command.endswith("Trainer --c") for run in runs] == [True, True, False]
    assert runs[2].command.endswith("-tr nnSSLCTrainer")
    assert (runs[2].epoch, runs[2].epochs) == (None, 4)


def damage_checkpoint(folder: Path) -> None:
    file = folder / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty_checkpoint(folder: Path) -> None:
    (folder / "checkpoint_final.pth").write_bytes(b"")


def damage_config(folder: Path) -> None:
    (folder / "resolved_config.yaml").write_text("kind: [\n")


def strange_config(folder: Path) -> None:
    (folder / "resolved_config.yaml").write_text("a text\n")


def foreign_checkpoint(folder: Path) -> None:
    torch.save({"network_weights": {}}, folder / "checkpoint_final.pth")


def strange_checkpoint(folder: Path) -> None:
    own = {"kind": "pretrain", "epoch": "x", "history": [1], "config": None}
    torch.save({"network_weights": {}, "nnssl": own}, folder / "checkpoint_final.pth")


def damage_probe(folder: Path) -> None:
    (folder / "probe.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (damage_checkpoint, "checkpoint_final.pth cannot be read"),
        (empty_checkpoint, "checkpoint_final.pth cannot be read"),
        (foreign_checkpoint, "not one of an nnSSL pre-training run"),
        (strange_checkpoint, "checkpoint_final.pth"),
        (damage_config, "resolved_config.yaml, line 2: not valid YAML"),
        (strange_config, "resolved_config.yaml"),
        (damage_probe, "probe.json is not valid JSON"),
    ],
)
def test_damage_is_a_row_and_the_others_stay(tmp_path, write, damage, told):
    damage(write("nnSSLATrainer"))
    write("nnSSLBTrainer", fold="1")
    broken, fine = list_runs(tmp_path)
    assert (broken.state, broken.command) == ("broken", "")
    assert told in broken.problem
    assert (fine.state, fine.problem) == ("finished", "")


def test_beside_a_broken_run_the_file_is_named(tmp_path, write):
    """The search opens every final checkpoint of the place and would stop at the broken one."""
    damage_checkpoint(write("nnSSLATrainer"))
    write("nnSSLBTrainer")
    assert list_runs(tmp_path)[1].command.startswith("export ")


def test_one_dataset_by_number_or_name(tmp_path, write):
    write("nnSSLATrainer")
    write("nnSSLATrainer", dataset="Dataset998_Other")
    assert len(list_runs(tmp_path)) == 2
    assert only(tmp_path, dataset="998").dataset == "Dataset998_Other"
    assert only(tmp_path, dataset=DATASET).dataset == DATASET
    for unknown in ("7", "Dataset9"):
        with pytest.raises(ValueError, match=f"no run of dataset {unknown}; it has Dataset998_Ot"):
            list_runs(tmp_path, unknown)
    with pytest.raises(ValueError, match="does not exist"):
        list_runs(tmp_path / "away")


def test_tensors_stay_in_the_file_and_fine_tuned_runs_closed(tmp_path, write, monkeypatch):
    """What makes hundreds of runs fast."""
    write("nnSSLATrainer")
    write("nnSSLTunedTrainer", kind="finetune")
    load, opened = torch.load, []

    def spy(file, **options):
        opened.append((file, options["mmap"]))
        return load(file, **options)

    monkeypatch.setattr(torch, "load", spy)
    assert [(only(tmp_path).folder / "checkpoint_final.pth", True)] == opened
