"""In-painting and out-painting of Models Genesis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnssl.views.randomness import generator, torch_generator

MOST_BOXES, CONTINUE = 5, 0.95  # boxes of a painting, and the probability of one more
BORDER = 3  # voxels between a box and the border of the image


def paint(
    image: Tensor, low: Tensor, high: Tensor, keys: Tensor, salt: str, outpaint: float
) -> Tensor:
    """Noise, uniform over the robust range, in boxes (in-painting) or around them (out-painting).

    Args:
        image: (n, C, *S).
        low: (n, C, 1, ...).
        high: (n, C, 1, ...).
        keys: int64 (n, 4) on the CPU.
        salt: name of the view.
        outpaint: probability of out-painting.

    Returns:
        (n, C, *S).
    """
    size = image.shape[2:]
    drawn = [_boxes(generator(key, salt, "boxes"), size, outpaint) for key in keys]
    outside = torch.tensor([out for out, _ in drawn], device=image.device)
    boxes = torch.from_numpy(np.stack([box for _, box in drawn])).to(image.device)
    noisy = _inside(boxes, size) ^ outside.reshape(-1, *[1] * len(size))  # (n, *S)
    fields = [
        torch.rand(
            image.shape[1:],
            generator=torch_generator(key, image.device, salt, "paint field"),
            device=image.device,
        )
        for key in keys
    ]
    return torch.where(noisy[:, None], low + (high - low) * torch.stack(fields), image)


def _boxes(
    random: np.random.Generator, size: Sequence[int], outpaint: float
) -> tuple[bool, np.ndarray]:
    """Whether to paint outside, and begin and end of the boxes (5, d, 2); unused ones are empty."""
    out = bool(random.random() < outpaint)
    going_on = random.random(MOST_BOXES) < CONTINUE
    going_on[0] |= out  # something is always kept
    boxes = np.zeros((MOST_BOXES, len(size), 2), dtype=np.int64)
    for box in boxes[: np.cumprod(going_on).sum()]:
        box[:] = [_side(random, length, out) for length in size]
    return out, boxes


def _side(random: np.random.Generator, length: int, out: bool) -> tuple[int, int]:
    """Begin and end along one axis: 1/6 to 1/3 of it inside, 3/7 to 4/7 outside."""
    if out:
        side = length - int(
            random.integers(3 * length // 7, max(4 * length // 7, 1), endpoint=True)
        )
    else:
        side = int(random.integers(max(length // 6, 1), max(length // 3, 1), endpoint=True))
    margin = min(BORDER, (length - side) // 2)
    begin = int(random.integers(margin, length - side - margin, endpoint=True))
    return begin, begin + side


def _inside(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Voxels in any of the boxes: (n, boxes, d, 2) to (n, *S) bool."""
    shape = [len(boxes), boxes.shape[1]]
    inside = torch.ones(shape + [1] * len(size), dtype=torch.bool, device=boxes.device)
    for axis, length in enumerate(size):
        place = torch.arange(length, device=boxes.device)
        begin, end = boxes[:, :, axis, :, None].unbind(2)  # (n, boxes, 1) each
        along = (place >= begin) & (place < end)
        others = [1] * len(size)
        others[axis] = length
        inside = inside & along.reshape(shape + others)
    return inside.any(1)
