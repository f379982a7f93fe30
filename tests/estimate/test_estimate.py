"""The estimate of a run: exact counts, true sizes, nothing left behind."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch

from nnssl.data.thumbnails import CELLS
from nnssl.estimate import dry_run
from nnssl.estimate.dry_run import DryRun, build_trainer, dry_folders
from nnssl.estimate.estimate import Estimate, _touch, estimate, expect_bytes_per_batch
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.training import pretraining_loop
from nnssl.training.factory import trainer_class
from nnssl.training.preflight import COPIES

JOB = DryRun("999", "2d")
PRETRAIN = """
extends: nnSSLContrastiveTrainer
training: {num_epochs: 3, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 1, picture_every: 9}
sampling: {partitions: 2, volumes: 2}
objective: {hidden_features: 16, embedding_features: 8}
"""
CLUSTERS = """
extends: nnSSLPixelClusteringTrainer
training: {num_epochs: 3, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 1, picture_every: 9}
objective: {clusters: 4, maps: %s}
"""
FINETUNE = """
extends: nnSSLFinetuneTrainer
training: {num_epochs: 5, num_iterations_per_epoch: 7, num_val_iterations_per_epoch: 2}
labels: {patients: 1}
"""
NAMES = {"nnSSLShortEstimateTrainer": PRETRAIN, "nnSSLTunedEstimateTrainer": FINETUNE}
COUNTS = {"nnSSLShortEstimateTrainer": (6, 3), "nnSSLTunedEstimateTrainer": (35, 10)}


@pytest.fixture(autouse=True)
def _trainers(tiny_dataset, trainer_yaml):
    for name, text in NAMES.items():
        trainer_yaml(name, text)


def files_in(*folders: Path) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for top in folders for f in top.rglob("*")}


@pytest.mark.parametrize(
    ("name", "counts"), [*COUNTS.items(), ("nnUNetTrainer", (250_000, 50_000))]
)
def test_counts_are_exact_and_nothing_is_left(tiny_dataset, monkeypatch, name, counts):
    """Hours are steps times seconds; no folder of nnU-Net and no temporary file is touched."""
    (tiny_dataset.preprocessed / "nnssl" / "cases.json").unlink()  # a run would restore it
    temporary = tiny_dataset.configs / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    folders = (tiny_dataset.preprocessed, tiny_dataset.results.parent, tiny_dataset.raw)
    before, environment = files_in(*folders), dict(os.environ)
    found = estimate(name, JOB, workers=0, steps=2)
    assert files_in(*folders) == before
    assert dict(os.environ) == environment
    assert not any(temporary.iterdir())
    assert (found.steps, found.val_steps) == counts
    seconds = counts[0] * found.seconds_per_step + counts[1] * found.seconds_per_val_step
    assert found.hours == pytest.approx(seconds / 3600)
    assert 0 < found.seconds_waited < found.seconds_per_step
    assert found.seconds_per_val_step > 0
    assert (found.cache_bytes > 0) == (name == "nnSSLShortEstimateTrainer")
    assert found.to_dict()["hours"] == found.hours


def test_checkpoint_and_caches_have_the_size_of_a_real_run(tiny_dataset, monkeypatch):
    monkeypatch.setattr(pretraining_loop, "draw_progress", lambda *_: None)
    monkeypatch.setattr(pretraining_loop, "save_pictures", lambda *_: None)
    name = "nnSSLShortEstimateTrainer"
    found = estimate(name, JOB, workers=0, steps=1)
    run = tiny_dataset.trainer(trainer_class(name))
    run.run_training()
    final = Path(run.output_folder) / "checkpoint_final.pth"
    assert read_checkpoint(final)["nnssl"]["step"] == found.steps
    assert found.checkpoint_bytes / COPIES == pytest.approx(final.stat().st_size, rel=0.1)
    real = sum(f.stat().st_size for f in run.folders.own.rglob("*") if f.is_file())
    assert found.cache_bytes == pytest.approx(real, rel=0.25)


def test_read_bytes_follow_the_blocks(tiny_dataset, tmp_path):
    """A box of 2 x 5 x 5 in blocks of 1 x 4 x 4 touches 2 x 8 x 8 of 4 x 16 x 16 on average."""
    file = tmp_path / "case.b2nd"
    noise = np.random.default_rng(0).random((1, 4, 16, 16), np.float32)
    blosc2.asarray(noise, urlpath=str(file), chunks=(1, 4, 16, 16), blocks=(1, 1, 4, 4))
    size = file.stat().st_size
    assert _touch(file, (2, 5, 5)) == pytest.approx(size * 2 / 4 * (8 / 16) ** 2)
    assert _touch(file, (9, 99, 99)) == size
    with dry_folders(JOB):
        trainer = tiny_dataset.trainer(trainer_class("nnSSLShortEstimateTrainer"))
        trainer.initialize()
        folder = tiny_dataset.preprocessed / "nnUNetPlans_2d"
        images = [f.stat().st_size for f in folder.glob("*.b2nd") if "_seg" not in f.name]
        assert 0 < expect_bytes_per_batch(trainer) <= trainer.budget.samples * max(images)


def test_clusters_of_a_few_cases_are_made_for_the_estimate(tiny_dataset, trainer_yaml, monkeypatch):
    """A training makes those of all; what it would not make is refused as there."""
    trainer_yaml("nnSSLClusterEstimateTrainer", CLUSTERS % "clusters")
    trainer_yaml("nnSSLOtherEstimateTrainer", CLUSTERS % "other")
    monkeypatch.setattr(dry_run, "FEW", 4)
    before = files_in(tiny_dataset.preprocessed)
    with dry_folders(JOB) as folder:
        trainer = build_trainer("nnSSLClusterEstimateTrainer", JOB)
        assert len(list(folder.rglob("clusters/fold_0/p*.b2nd"))) == 4 + 2  # training, validation
        assert len({case.patient for case in trainer.drawn_cases}) > 1
    found = estimate("nnSSLClusterEstimateTrainer", JOB, workers=0, steps=2)
    assert (found.steps, found.val_steps) == (6, 3)
    assert found.cache_bytes > 8 * math.prod(CELLS) * 2  # of all training cases
    assert files_in(tiny_dataset.preprocessed) == before
    with pytest.raises(ValueError, match=r"cluster maps in .*other/fold_0: none were made"):
        estimate("nnSSLOtherEstimateTrainer", JOB, workers=0, steps=2)


@pytest.fixture(scope="module")
def example(request):
    """An estimate whose figures a test replaces."""
    machine = {"cores": 8, "load_average": 1.0}
    job = {"dataset": "999"}
    times = (100, 10, 0.2, 0.0, 0.1, 0.05)
    return Estimate("nnSSLX", job, 2, *times, 10, None, 100, 0, 10**9, 1e6, machine)


def test_advice_names_what_binds(example):
    assert example.binding == "arithmetic"
    assert example.advise() == []
    slow = replace(example, seconds_waited=0.1, batch_seconds=0.35)
    assert (slow.binding, slow.workers_needed) == ("data", 4)
    assert slow.advise() == [
        "50 % of the time is spent waiting for data: export nnUNet_n_proc_DA=4"
    ]
    many = replace(slow, batch_seconds=0.9).advise()
    assert many[0].endswith("nnUNet_n_proc_DA=9 (this machine has 8 cores)")
    assert "disk or the load is slow" in replace(slow, batch_seconds=0.05).advise()[0]


def test_advice_on_space_and_load(example):
    tight = replace(
        example,
        memory_bytes=95,
        memory_limit=100,
        free_bytes=50,
        machine={"cores": 2, "load_average": 6.0},
    )
    memory, disk, load = tight.advise()
    assert "voxel_budget" in memory
    assert "free" in disk
    assert "busy (load 6.0 on 2 cores)" in load


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("nnUNetTrainer", {"dataset": "998"}, "998"),
        ("nnUNetTrainer", {"plans": "Other"}, "Other.json does not exist; run first"),
        ("nnUNetTrainer", {"configuration": "4d"}, "4d"),
        ("nnUNetTrainer", {"fold": "first"}, "fold: found 'first', allowed are a number"),
        ("nnSSLShortEstimateTrainer", {"fold": "7"}, "fold 7: .* has 2 folds"),
        ("nnSSLUnwrittenTrainer", {}, "nnSSLUnwrittenTrainer"),
    ],
)
def test_bad_input_is_told(tiny_dataset, name, change, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        estimate(name, replace(JOB, **change), workers=0, steps=1)
    assert not any(tiny_dataset.results.parent.rglob("*"))


def test_unprocessed_data_are_told(tiny_dataset):
    (tiny_dataset.preprocessed / "nnUNetPlans_2d").rename(tiny_dataset.configs / "away")
    with pytest.raises(
        ValueError, match="nnUNetv2_preprocess -d 999 -plans_name nnUNetPlans -c 2d"
    ):
        estimate("nnUNetTrainer", JOB, workers=0, steps=1)
    assert torch.get_num_threads() == 1
