"""How much clusters and labels tell of each other: reported, never trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnssl.training.case_store import open_image
from nnssl.training.pretraining_data import validation_maker

BATCHES = 20  # of the validation cases


def contingency(clusters: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts (K, L) of pairs; places where either is negative do not count."""
    a, b = (np.asarray(x).reshape(-1).astype(np.int64) for x in (clusters, labels))
    known = (a >= 0) & (b >= 0)
    a, b = a[known], b[known]
    shape = (int(a.max(initial=-1)) + 1, int(b.max(initial=-1)) + 1)
    return np.bincount(a * shape[1] + b, minlength=shape[0] * shape[1]).reshape(shape)


def normalised_mutual_information(table: np.ndarray) -> float:
    """`2 I(C; L) / (H(C) + H(L))` of a contingency table: 0 independent, 1 the same partition.

    NaN where there is only one label or no place at all.
    """
    total = table.sum()
    if total == 0 or (table.sum(0) > 0).sum() < 2:
        return float("nan")
    joint = table / total
    of_clusters, of_labels, of_both = (
        _entropy(p) for p in (joint.sum(1), joint.sum(0), joint.ravel())
    )
    return float(2 * (of_clusters + of_labels - of_both) / (of_clusters + of_labels))


@torch.no_grad()
def validation_nmi(
    trainer: Any, clusters: Callable[[Tensor], Tensor] | None = None, foreground: bool = False
) -> float:
    """NMI of clusters and labels on patches of the validation cases; NaN where there are none.

    Args:
        trainer: an initialised pre-trainer.
        clusters: images (B, C, *S) -> integer maps (B, *S); default: the objective's `clusters`.
        foreground: whether only voxels with a label above 0 count.
    """
    found = clusters or trainer.objective.clusters
    maker = validation_maker(trainer.batch_maker, trainer.val_cases, BATCHES)
    if maker is None:
        return float("nan")
    pairs = []
    for step in range(BATCHES):
        batch = maker(step)
        image = _centre(batch["image"], trainer.budget.crop).to(trainer.device)
        boxes = batch["box"].long().numpy()
        named = zip(batch["identifier"], boxes, strict=True)
        labels = np.stack([_labels(trainer, name, box) for name, box in named])
        labels = labels[:, 0] if image.ndim == 4 else labels
        labels = _centre(torch.from_numpy(labels)[:, None], trainer.budget.crop)[:, 0].numpy()
        labels = np.where(labels > 0, labels, -1) if foreground else labels
        pairs.append((found(image).cpu().numpy().ravel(), labels.ravel()))
    return normalised_mutual_information(
        contingency(*map(np.concatenate, zip(*pairs, strict=True)))
    )


def _labels(trainer: Any, identifier: str, box: np.ndarray) -> np.ndarray:
    """Labels of a box (3, 2), -1 outside the volume and outside nnU-Net's mask."""
    folder = trainer.folders.preprocessed
    files = [folder / f"{identifier}_seg{ending}" for ending in (".b2nd", ".npy")]
    array = open_image(next(file for file in files if file.is_file()))
    low, high = np.maximum(box[:, 0], 0), np.minimum(box[:, 1], array.shape[1:])
    index = (slice(0, 1), *map(slice, low, np.maximum(low, high)))
    part = np.asarray(array[index])[0]
    pad = list(zip(low - box[:, 0], np.maximum(box[:, 1] - high, 0), strict=True))
    return np.pad(part.astype(np.int64), pad, constant_values=-1)


def _centre(patch: Tensor, crop: tuple[int, ...]) -> Tensor:
    for axis, size in enumerate(crop):
        patch = patch.narrow(axis + 2, (patch.shape[axis + 2] - size) // 2, size)
    return patch


def _entropy(shares: np.ndarray) -> float:
    kept = shares[shares > 0]
    return float(-(kept * np.log(kept)).sum())
