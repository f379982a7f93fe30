"""How many compressed bytes a batch makes the loader read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from nnssl.data.budget import Budget
from nnssl.data.case_store import image_file, open_image
from nnssl.modules.positions import extent3

MOST_LOOKED_AT = 16  # cases


def bytes_per_batch(trainer: Any) -> float:
    """Expected compressed bytes of one training batch.

    A box of p voxels per axis at a random place touches p + b - 1 voxels of an axis of L voxels
    that is stored in blocks of b (never more than L), and the file's bytes are spread evenly:

    .. math:: N \\sum_{files} size \\prod_a \\min(L_a, p_a + b_a - 1) / L_a

    A supervised batch reads the labels' file beside the image's.
    """
    folder = Path(trainer.preprocessed_dataset_folder)
    cases = sorted(trainer.do_split()[0])
    some = cases[:: math.ceil(len(cases) / MOST_LOOKED_AT)]
    budget = getattr(trainer, "budget", None)
    if isinstance(budget, Budget):
        raw_patch, samples, endings = budget.raw_patch, budget.samples, [""]
    else:
        raw_patch = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[2]
        samples, endings = trainer.batch_size, ["", "_seg"]
    files = [_files(folder, case, endings) for case in some]
    return samples * fmean(sum(_touched(file, extent3(raw_patch)) for file in of) for of in files)


def _files(folder: Path, case: str, endings: Sequence[str]) -> list[Path]:
    """Files of a case; labels lie in the image's own `.npz` before nnU-Net 2.6."""
    image = image_file(folder, case)
    named = [image.with_name(f"{case}{ending}{image.suffix}") for ending in endings]
    return [file for file in named if file.is_file()]


def _touched(file: Path, raw_patch: Sequence[int]) -> float:
    size = file.stat().st_size
    if file.suffix == ".npz":  # has to be read as a whole
        return size
    array = open_image(file)
    shape = np.array(array.shape[1:])
    blocks = np.array(getattr(array, "blocks", (1,) * array.ndim)[1:])
    read = np.minimum(shape, np.array([int(p) for p in raw_patch]) + blocks - 1)
    return float(size * np.prod(read / shape))
