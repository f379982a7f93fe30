"""How the voxels of a step are divided into crop x patches x views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_CELLS = 4  # bottleneck cells per axis that a crop keeps by default
FEWEST_VOLUMES = 3  # volumes per step that a contrast between volumes should see


@dataclass(frozen=True)
class Budget:
    """Division of one step's voxels, per process.

    Attributes:
        crop: size of a full view in voxels.
        patch: size of the raw patch that the loader delivers.
        samples: raw patches.
        views: network inputs per raw patch, in units of full views.
        planned: voxels that nnU-Net's plan spends per step.
    """

    crop: tuple[int, ...]
    patch: tuple[int, ...]
    samples: int
    views: float
    planned: int

    @property
    def voxels(self) -> int:
        """Voxels that the network sees per step."""
        return round(math.prod(self.crop) * self.samples * self.views)

    def describe(self, channels: int, world_size: int) -> str:
        """The line for the log."""
        size = "x".join(map(str, self.crop))
        raw = "x".join(map(str, self.patch))
        mebibytes = self.voxels * channels * 4 / 2**20
        text = (
            f"Budget per step and process: {self.samples} patches of {raw} (crop {size} and margin)"
            f" x {self.views:g} views = {self.voxels} voxels, {mebibytes:.1f} MiB of input "
            f"(nnU-Net's plan: {self.planned} voxels)"
        )
        return f"{text}; over {world_size} processes {self.voxels * world_size} voxels"


@dataclass(frozen=True)
class BudgetRequest:
    """What the plans allow and what the objective asks for.

    Attributes:
        plan_patch, plan_batch: nnU-Net's own patch size and batch size.
        stride: total stride of the encoder per axis.
        views: full views per patch.
        share: share of the U-Net's activations that the objective keeps (1: encoder and decoder).
        least: patches that the objective asks for before crops may grow; None: the plan's batch.
        parts: parts S of which a step must hold whole multiples (1: no structure).
        median: median volume in voxels (3 axes), for leaving S positions along `axis`.
        axis: array axis of the position.
        crop, samples: fixed by the user, or None.
    """

    plan_patch: tuple[int, ...]
    plan_batch: int
    stride: tuple[int, ...]
    views: float
    share: float = 1.0
    least: int | None = None
    parts: int = 1
    median: tuple[float, ...] = ()
    axis: int = 0
    crop: tuple[int, ...] | None = None
    samples: int | None = None


def divide(request: BudgetRequest) -> tuple[tuple[int, ...], int]:
    """Crop and number of patches for a step.

    The voxels that the plan spends (over the share of activations that is kept) are divided: the
    largest crop, in multiples of the stride, that leaves room for `FEWEST_VOLUMES` volumes; what
    remains buys more patches.

    Raises:
        ValueError: if a size given by the user does not fit the network.
    """
    allowed = math.prod(request.plan_patch) * request.plan_batch / request.share
    crop = request.crop or _largest_crop(request, allowed)
    check_crop(crop, request.stride)
    if request.samples is not None:
        return crop, request.samples
    affordable = int(allowed / (math.prod(crop) * request.views))
    return crop, max(1, affordable // request.parts) * request.parts


def check_crop(crop: Sequence[int], stride: Sequence[int]) -> None:
    """Raise ValueError unless the crop divides by the strides and keeps 2 bottleneck cells."""
    if len(crop) != len(stride):
        raise ValueError(
            f"training.crop: found {list(crop)}, allowed are {len(stride)} numbers here"
        )
    for size, step in zip(crop, stride, strict=True):
        if size % step or size < 2 * step:
            raise ValueError(
                f"training.crop: found {list(crop)}, allowed are multiples of the network's total "
                f"strides {list(stride)}, at least {[2 * s for s in stride]}"
            )


def _largest_crop(request: BudgetRequest, allowed: float) -> tuple[int, ...]:
    """Shrink the planned patch step by step, longest relative axis first, until it fits."""
    least = [
        min(p, LEAST_CELLS * s) for p, s in zip(request.plan_patch, request.stride, strict=True)
    ]
    crop = [p // s * s for p, s in zip(request.plan_patch, request.stride, strict=True)]
    crop = _leave_positions(crop, request)
    enough = request.plan_batch if request.least is None else request.least
    if request.parts > 1:
        enough = FEWEST_VOLUMES * request.parts
    while math.prod(crop) * request.views * enough > allowed:
        free = [a for a, size in enumerate(crop) if size - request.stride[a] >= least[a]]
        if not free:
            break
        widest = max(free, key=lambda a: crop[a] / request.plan_patch[a])
        crop[widest] -= request.stride[widest]
    return tuple(crop)


def _leave_positions(crop: list[int], request: BudgetRequest) -> list[int]:
    """Shorten the position axis until S clearly different positions exist in a median volume."""
    axis = request.axis - (3 - len(crop))
    if request.parts < 2 or axis < 0 or not request.median:
        return crop
    step = request.stride[axis]
    room = request.median[request.axis] * 2 / 3
    while crop[axis] > room and crop[axis] - step >= 2 * step:
        crop[axis] -= step
    return crop


def raw_patch(crop: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """Patch to read: at least the crop, with a margin that is even on both sides together."""
    sizes = [max(c, w) for c, w in zip(crop, wanted, strict=True)]
    return tuple(size + (size - c) % 2 for c, size in zip(crop, sizes, strict=True))


def median_shape(median: Sequence[float], dimension: int) -> tuple[float, ...]:
    """Median volume on three axes; nnU-Net's 2D plans state two, the slices being unlimited."""
    return tuple(median) if len(median) == 3 else (math.inf, *median)
