"""The deformations of Models Genesis, on whole batches and on the batch's own device.

They are defined on [0, 1]. Here every image and channel brings its own robust range (0.5 and 99.5
percent quantiles), which takes the place of [0, 1]: z-scored MR and CT behave alike, what lies
beyond the range stays beyond it, and what is not deformed stays as it is, bit for bit.

Which samples are deformed and how is drawn per sample on the CPU; random fields are drawn per
sample on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nnssl.views.intensity import find_robust_range
from nnssl.views.randomness import draw_fields, generator

WINDOWS = 10_000  # of local shuffling in an image of three axes, whatever its size
LARGEST_WINDOW = 10  # windows of local shuffling are at most 1/10 of each axis
MOST_COVERED = 1 / 16  # of an axis by a mean window: that of the original's shortest axis, of 32
RANDOM_BITS = 12  # resolution of the draws, per axis
MOST_BOXES, CONTINUE = 5, 0.95  # boxes of a painting, and the probability of one more
BORDER = 3  # voxels between a box and the border of the image
CURVE_POINTS = 1024  # of the table of an intensity curve


@torch.no_grad()
def deform(
    image: Tensor,
    keys: Tensor,
    salt: str,
    *,
    shuffle: float,
    nonlinear: float,
    paint: float,
    outpaint: float,
) -> Tensor:
    """Local shuffling, non-linear intensity, and in- or out-painting, in this order.

    Args:
        image: (B, C, *S), is not changed; each image is deformed in its own way.
        keys: int64 (B, 4) on the CPU.
        salt: name of the view.
        shuffle: probability of local shuffling.
        nonlinear: probability of a non-linear intensity curve, per channel.
        paint: probability of a painting.
        outpaint: share of out-painting among the paintings; the rest is in-painting.

    Returns:
        (B, C, *S) float32.
    """
    with torch.autocast(image.device.type, enabled=False):
        image = image.float()
        low, high = find_robust_range(image)
        shuffled = _draw_rows(shuffle, keys, salt, "shuffle")
        image = _change_rows(
            image, shuffled, lambda some: local_shuffle(some, keys[shuffled], salt)
        )
        curves = [_draw_curves(generator(key, salt, "curve"), low.shape[1]) for key in keys]
        image = nonlinear_intensity(image, low, high, np.stack(curves), nonlinear)
        painted = _draw_rows(paint, keys, salt, "paint")
        return _change_rows(
            image,
            painted,
            lambda some: paint_boxes(
                some, low[painted], high[painted], keys[painted], salt, outpaint
            ),
        )


def _draw_rows(probability: float, keys: Tensor, salt: str, name: str) -> list[int]:
    return [r for r, key in enumerate(keys) if generator(key, salt, name).random() < probability]


def _change_rows(image: Tensor, rows: list[int], change: Callable[[Tensor], Tensor]) -> Tensor:
    if not rows:
        return image
    index = torch.tensor(rows).to(image.device, non_blocking=True)
    return image.index_copy(0, index, change(image[index]))


def _draw_curves(random: np.random.Generator, channels: int) -> np.ndarray:
    """Control points, and draws for direction and whether to curve at all: (C, 6)."""
    return np.concatenate([random.random((channels, n)) for n in (4, 1, 1)], 1)


def nonlinear_intensity(
    image: Tensor, low: Tensor, high: Tensor, curves: np.ndarray, probability: float
) -> Tensor:
    """Cubic Bezier curves of the intensities within the robust range, slope 1 or -1 beyond it.

    `x(t), y(t) = 3 (1-t)^2 t P1 + 3 (1-t) t^2 P2 + t^3` with P1, P2 in the unit square:
    both never fall, so that a curve rises from (0, 0) to (1, 1), or falls from (0, 1) to (1, 0)
    where y is read backwards (the original sorts x alone, which comes to the same).

    Args:
        image: (B, C, *S).
        low: (B, C, 1, ...).
        high: (B, C, 1, ...).
        curves: (B, C, 6) uniform draws: x and y of P1, x and y of P2, below 0.5 for a falling
            curve, below the probability for any.
        probability: of a curve, per channel.

    Returns:
        (B, C, *S).
    """
    tables = np.array([[_table(curve) for curve in channels] for channels in curves])
    table = torch.from_numpy(tables).to(image, non_blocking=True).flatten(0, 1)  # (B C, points + 1)
    axes = (*low.shape[:2], *[1] * (image.ndim - 2))
    falling = torch.from_numpy(curves[..., 4] < 0.5).to(image, non_blocking=True)
    curved = torch.from_numpy(curves[..., 5] < probability)
    curved = curved.to(image.device, non_blocking=True)
    span = (high - low).clamp_min(torch.finfo(image.dtype).tiny)
    inside = image.clamp(low, high)
    position = (inside - low) / span * (CURVE_POINTS - 1)
    cell = position.nan_to_num().long()  # a NaN stays one, and is no index
    rows = cell.flatten(2).flatten(0, 1)  # (B C, voxels)
    left = table.gather(1, rows).view_as(image)
    right = table.gather(1, rows + 1).view_as(image)
    mapped = low + (high - low) * torch.lerp(left, right, position - cell)
    mapped = mapped + (image - inside) * (1 - 2 * falling).reshape(axes)
    return torch.where(curved.reshape(axes), mapped, image)


def _table(curve: np.ndarray) -> np.ndarray:
    """y at equidistant x in [0, 1], the last point twice (its right neighbour)."""
    t = np.linspace(0, 1, CURVE_POINTS)
    weights = np.stack([3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2])  # (2, points)
    x, y = curve[:4].reshape(2, 2).T @ weights + t**3
    values = np.interp(t, x, y[::-1] if curve[4] < 0.5 else y)
    return np.append(values, values[-1])


def local_shuffle(image: Tensor, keys: Tensor, salt: str, windows: float = WINDOWS) -> Tensor:
    """Every voxel takes the value of a random voxel of a small window that holds both.

    The original writes shuffled windows one after the other, each read from the undeformed image,
    so that of the windows over a voxel the last one counts. Here every voxel draws, by itself, what
    that leads to: whether any window covers it (their number is Poisson), the sides of the last
    one, a place in it and the place of the source. Whether and how far a voxel's value travels has
    the same distribution. It differs in that neighbours draw apart (values may repeat, which in
    the original only overlapping windows bring about), and in that at the border windows are
    mirrored rather than kept inside. Channels move together.

    The number of windows over a voxel is that of the original, which takes 10,000 windows for an
    image of any size: their mean length is a twentieth of each axis. What the original does not
    know is taken for an axis of 32 voxels, the shortest in its cube of 64 x 64 x 32: the third axis
    of a 2D image, and axes so short that a window of one voxel is more of them.

    Args:
        image: (n, C, *S).
        keys: int64 (n, 4) on the CPU.
        salt: name of the view.
        windows: number of windows.

    Returns:
        (n, C, *S), each value one of the image's own.
    """
    size = image.shape[2:]
    draw = partial(torch.randint, 2 ** (RANDOM_BITS * 4))
    bits = draw_fields(draw, keys, size, image.device, salt, "shuffle field")  # (n, *S)
    sides = [max(1, length // LARGEST_WINDOW) for length in size]
    levels = 2**RANDOM_BITS
    covered = [min((side + 1) / 2 / n, MOST_COVERED) for side, n in zip(sides, size, strict=True)]
    over_a_voxel = windows * float(np.prod(covered)) * MOST_COVERED ** (3 - len(size))
    moved = _draw(bits, len(size)) < (1 - np.exp(-over_a_voxel)) * levels
    source = torch.zeros_like(bits)
    for axis, length in enumerate(size):
        table = torch.from_numpy(_displacements(sides[axis], levels))
        table = table.to(image.device, non_blocking=True)
        own = torch.arange(length, device=image.device).reshape(-1, *[1] * (len(size) - 1 - axis))
        step = torch.where(moved, table[_draw(bits, axis)], 0)
        source = source * length + _mirror(own + step, length)
    voxels = image.flatten(2)
    return voxels.gather(2, source.flatten(1)[:, None].expand_as(voxels)).view_as(image)


def _draw(bits: Tensor, number: int) -> Tensor:
    """One of the independent uniform integers below 2 ** RANDOM_BITS that a field holds."""
    return (bits >> (RANDOM_BITS * number)) & (2**RANDOM_BITS - 1)


def _displacements(side: int, levels: int) -> np.ndarray:
    """Inverse distribution of the way from a voxel to its source along one axis.

    A window that covers a voxel has side s with a probability proportional to s; voxel and source
    have independent uniform places in it: `P(k) = sum_s s / sum(1..side) * (s - |k|)+ / s^2`.
    """
    steps = np.arange(1 - side, side)
    s = np.arange(1, side + 1)[:, None]
    probability = (np.maximum(s - np.abs(steps), 0) / s).sum(0) / s.sum()
    centres = (np.arange(levels) + 0.5) / levels
    return steps[np.searchsorted(probability.cumsum(), centres).clip(max=len(steps) - 1)]


def _mirror(index: Tensor, length: int) -> Tensor:
    """Indices beyond an edge, mirrored at it (the edge's own voxel is its own image)."""
    index = torch.where(index < 0, -index - 1, index)
    return torch.where(index >= length, 2 * length - 1 - index, index)


def paint_boxes(
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
    drawn = [_draw_boxes(generator(key, salt, "boxes"), size, outpaint) for key in keys]
    outside = torch.tensor([out for out, _ in drawn]).to(image.device, non_blocking=True)
    boxes = torch.from_numpy(np.stack([box for _, box in drawn]))
    boxes = boxes.to(image.device, non_blocking=True)
    noisy = _inside(boxes, size) ^ outside.reshape(-1, *[1] * len(size))  # (n, *S)
    fields = draw_fields(torch.rand, keys, image.shape[1:], image.device, salt, "paint field")
    return torch.where(noisy[:, None], low + (high - low) * fields, image)


def _draw_boxes(
    random: np.random.Generator, size: Sequence[int], outpaint: float
) -> tuple[bool, np.ndarray]:
    """Whether to paint outside, and begin and end of the boxes (5, d, 2); unused ones are empty."""
    out = bool(random.random() < outpaint)
    going_on = random.random(MOST_BOXES) < CONTINUE
    going_on[0] |= out  # something is always kept
    boxes = np.zeros((MOST_BOXES, len(size), 2), dtype=np.int64)
    for box in boxes[: np.cumprod(going_on).sum()]:
        box[:] = [_draw_side(random, length, out) for length in size]
    return out, boxes


def _draw_side(random: np.random.Generator, length: int, out: bool) -> tuple[int, int]:
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
