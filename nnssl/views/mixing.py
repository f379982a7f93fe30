"""Mixing two images: boxes of copy-paste and CutMix, partners, and the share of mixup.

Reference:
    Bai, Chen, Li, Shen, Wang: Bidirectional copy-paste for semi-supervised medical image
    segmentation. CVPR 2023, arXiv:2305.00673.
    Yun et al.: CutMix. ICCV 2019, arXiv:1905.04899.
    Zhang et al.: mixup. ICLR 2018, arXiv:1710.09412.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnssl.views.randomness import generator

BLEND = 0.1  # both parameters of mixup's Beta distribution (Chaitanya et al.)


def draw_boxes(keys: Tensor, size: Sequence[int], side: float, *salt: str) -> Tensor:
    """One box per sample, anywhere inside the image: bool (n, 1, *size), True inside.

    Args:
        keys: int64 (n, 4).
        size: voxels of the image per axis.
        side: length of the box on every axis, as a share of the image's, above 0 to 1.
    """
    boxes = torch.zeros((len(keys), 1, *size), dtype=torch.bool)
    for box, key in zip(boxes, keys, strict=True):
        random = generator(key, "box", *salt)
        lengths = [max(1, round(side * length)) for length in size]
        begins = [random.integers(s - n + 1) for s, n in zip(size, lengths, strict=True)]
        inside = [slice(b, b + n) for b, n in zip(begins, lengths, strict=True)]
        box[0][tuple(inside)] = True
    return boxes


def draw_cutmix_boxes(keys: Tensor, size: Sequence[int]) -> Tensor:
    """CutMix: for every other sample on average a box of 2 to 40 % of the voxels; else none."""
    boxes = torch.zeros((len(keys), 1, *size), dtype=torch.bool)
    for row, key in enumerate(keys):
        random = generator(key, "cutmix")
        if random.random() < 0.5:
            side = random.uniform(0.02, 0.4) ** (1 / len(size))
            boxes[row] = draw_boxes(key[None], size, side, "cutmix")[0]
    return boxes


def draw_blend(key: Tensor) -> float:
    """The share of the first image in mixup, from Beta(0.1, 0.1), at least one half."""
    share = float(generator(key, "mixup").beta(BLEND, BLEND))
    return max(share, 1 - share)


def draw_partners(keys: Tensor) -> Tensor:
    """A partner for every sample, another one where there is one: int64 (n,), a cyclic shift."""
    count = len(keys)
    shift = int(generator(keys[0], "partner").integers(1, count)) if count > 1 else 0
    return torch.from_numpy((np.arange(count) + shift) % count)
