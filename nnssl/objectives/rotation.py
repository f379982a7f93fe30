"""Rotation: tell by which multiple of 90 degrees an image was turned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from nnssl.modules import unet
from nnssl.objectives.base import Batch, Context
from nnssl.objectives.pieces import ClassificationObjective
from nnssl.views.randomness import generator

ALIKE = 1.25  # spacings of two axes differ by no more than this factor

Turn = tuple[int, tuple[int, int]]  # quarter turns, and the array axes of the image they lie in


class RotationObjective(ClassificationObjective):
    r"""Classify the rotation of an image: 4 classes in 2D, 10 in 3D.

    .. math:: L = -\frac{1}{B} \sum_b \ln \mathrm{softmax}(h(f(R_{y_b} x_b)))_{y_b}

    R_0 is the identity, the others are turns by 90, 180 and 270 degrees in the plane of two image
    axes (one plane in 2D, three in 3D). They move voxels and interpolate nothing. A quarter turn
    needs two axes of like spacing, else stretched anatomy and coarse resolution would give it away;
    half turns are always possible.

    Reference: Gidaris, Singh, Komodakis, *Unsupervised representation learning by predicting image
    rotations*, ICLR 2018, arXiv:1803.07728; in 3D Taleb, Loetzsch, Danz, Severin, Gaertner,
    Bergner, Lippert, *3D self-supervised methods for medical imaging*, NeurIPS 2020,
    arXiv:2006.03829.

    Differs from the paper: any patch; the head reads a coarse grid of the bottleneck; AdamW in the
    place of Adam.

    Shapes: view (B, C, *S).

    Args:
        crop: axes of like spacing are cut to one length, the largest that all their strides divide,
            so that all turns are possible; else those that keep the shape of the patch.
    """

    pooling_cells = 3

    def __init__(self, network: nn.Module, context: Context, *, crop: bool = True) -> None:
        self.size = find_common_size(network, context) if crop else tuple(context.patch_size)
        self.turns = find_turns(self.size, context.spacing)
        super().__init__(network, context, classes=len(self.turns))

    def describe(self) -> str:
        return f"{self.classes} rotations of {'x'.join(map(str, self.size))} voxels"

    def cut(self, batch: Batch) -> Tensor:
        image = batch["views"]["global_0"].image
        for axis, (length, whole) in enumerate(zip(self.size, image.shape[2:], strict=True), 2):
            image = image.narrow(axis, (whole - length) // 2, length)
        turned = [_turn(x, self.turns[c]) for x, c in zip(image, self._draw(batch), strict=True)]
        return torch.stack(turned)[:, None]

    def answer(self, codes: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        drawn = torch.tensor(self._draw(batch)).to(codes.device, non_blocking=True)
        return self.head(codes[:, 0]), drawn

    def _draw(self, batch: Batch) -> list[int]:
        return [int(generator(key, "rotation").integers(self.classes)) for key in batch["key"]]


def find_turns(size: Sequence[int], spacing: Sequence[float]) -> list[Turn]:
    """All distinct turns about one axis that keep size and spacing; the first is the identity."""
    turns: list[Turn] = [(0, (0, 1))]
    for a, b in combinations(range(len(size)), 2):
        quarter = size[a] == size[b] and _alike(spacing[a], spacing[b])
        turns += [(count, (a, b)) for count in ((1, 2, 3) if quarter else (2,))]
    return turns


def find_common_size(network: nn.Module, context: Context) -> tuple[int, ...]:
    """The patch with one length on axes of like spacing, where two bottleneck cells fit into it."""
    size, strides = list(context.patch_size), unet.total_stride(network)
    for axis, spacing in enumerate(context.spacing):
        alike = [a for a, other in enumerate(context.spacing) if _alike(spacing, other)]
        step = math.lcm(*(strides[a] for a in alike))
        length = min(context.patch_size[a] for a in alike) // step * step
        if length >= 2 * strides[axis]:
            size[axis] = length
    return tuple(size)


def _alike(a: float, b: float) -> bool:
    return max(a, b) <= ALIKE * min(a, b)


def _turn(image: Tensor, turn: Turn) -> Tensor:
    """(C, *S), turned as `numpy.rot90` does."""
    count, (a, b) = turn
    return torch.rot90(image, count, (a + 1, b + 1))
