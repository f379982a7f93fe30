"""Images without labels beside the tiny dataset, and trainers that may draw them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from nnssl.data.unlabelled.job import PreprocessingPlan
from nnssl.data.unlabelled.preprocess import UnlabelledTask, preprocess_unlabelled
from nnssl.data.unlabelled.sources import FileChoice
from nnssl.training.factory import trainer_class

SHORT = """
extends: nnSSLContrastiveTrainer
training: {num_epochs: 1, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 0}
sampling: {partitions: 2, volumes: 3}
objective: {hidden_features: 16, embedding_features: 8}
probe: {probe_at_end: false}
"""
KNOWN = r"(p\d)_"


@pytest.fixture
def pretrainer(tiny_dataset: Any, trainer_yaml: Callable[[str, str], str]) -> Callable[..., Any]:
    """`pretrainer(fold=0)`: an initialised trainer."""
    trainer_yaml("nnSSLShort", SHORT)
    trainer_class.cache_clear()

    def make(fold: int | str = 0) -> Any:
        trainer = tiny_dataset.trainer(trainer_class("nnSSLShort"), fold=fold)
        trainer.initialize()
        return trainer

    return make


@pytest.fixture
def add_cine(tiny_dataset: Any, tmp_path: Path) -> Callable[..., Path]:
    """`add_cine(name, patient, pattern)`: preprocesses a cine of the patient's two frames."""

    def add(name: str, patient: str, pattern: str | None = None) -> Path:
        source = tmp_path / "cines" / name
        source.mkdir(parents=True, exist_ok=True)
        raw = tiny_dataset.raw / "imagesTr"
        first, *rest = (nibabel.load(raw / f"{patient}_f{k}_0000.nii.gz") for k in (0, 1))
        array = np.stack([each.get_fdata(dtype=np.float32) for each in (first, *rest)], 3)
        stem = f"{patient}_4d" if pattern else f"{name}{patient[1:]}"
        nibabel.save(nibabel.Nifti1Image(array, first.affine), source / f"{stem}.nii.gz")
        plan = PreprocessingPlan(tiny_dataset.plans, "2d", tiny_dataset.dataset_json)
        task = UnlabelledTask(
            tiny_dataset.preprocessed, source, name, plan, FileChoice((), None, pattern)
        )
        preprocess_unlabelled(task, 1)
        return task.folder

    return add


def batches(trainer: Any, count: int = 12) -> list[dict[str, Any]]:
    return [trainer.batch_maker(step) for step in range(count)]


def drawn(trainer: Any, count: int = 12) -> set[str]:
    return {name for batch in batches(trainer, count) for name in batch["identifier"]}


def same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    return all(
        torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key]
        for a, b in zip(first, second, strict=True)
        for key, value in a.items()
    )
