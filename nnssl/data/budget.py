"""How the voxels of a step are divided into patch size x raw patches x views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_CELLS = 4  # bottleneck cells per axis that a patch keeps by default
FEWEST_VOLUMES = 3  # volumes per step that a contrast between volumes should see


@dataclass(frozen=True)
class Budget:
    """Division of one step's voxels, per process."""

    patch_size: tuple[int, ...]  # of a full view, in voxels
    raw_patch: tuple[int, ...]  # that the loader delivers
    samples: int
    views: float  # network inputs per raw patch, in units of full views
    planned: int  # voxels that nnU-Net's plan spends per step

    @property
    def voxels(self) -> int:
        """Voxels that the network sees per step."""
        return round(math.prod(self.patch_size) * self.samples * self.views)

    def describe(self, channels: int, world_size: int) -> str:
        """The line for the log."""
        size = "x".join(map(str, self.patch_size))
        raw = "x".join(map(str, self.raw_patch))
        mebibytes = self.voxels * channels * 4 / 2**20
        text = (
            f"Budget per step and process: {self.samples} raw patches of {raw} (patch {size} and "
            f"margin) x {self.views:g} views = {self.voxels} voxels, {mebibytes:.1f} MiB of input "
            f"(nnU-Net's plan: {self.planned} voxels)"
        )
        several = f"; over {world_size} processes {self.voxels * world_size} voxels"
        return text + several * (world_size > 1)


@dataclass(frozen=True)
class BudgetRequest:
    """What the plans allow and what the objective asks for."""

    planned_patch: tuple[int, ...]  # nnU-Net's own
    planned_batch: int
    stride: tuple[int, ...]  # total stride of the encoder per axis
    views: float  # full views per raw patch
    share: float = 1.0  # of the U-Net's activations that are kept; 1: encoder and decoder
    least: int | None = None  # raw patches before they may be larger; None: planned_batch
    parts: int = 1  # parts S of which a step must hold whole multiples (1: no structure)
    median: tuple[float, ...] = ()  # volume in voxels (3 axes), to leave S positions on `axis`
    axis: int = 0  # array axis of the position
    patch_size: tuple[int, ...] | None = None  # fixed by the user, as samples; or None
    samples: int | None = None


def divide_voxels(request: BudgetRequest) -> tuple[tuple[int, ...], int]:
    """Patch size and number of raw patches for a step.

    The voxels that the plan spends (over the share of activations that is kept) are divided: the
    largest patch, in multiples of the stride, that leaves room for `FEWEST_VOLUMES` volumes; what
    remains buys more raw patches.

    Raises:
        ValueError: if a size given by the user does not fit the network.
    """
    allowed = math.prod(request.planned_patch) * request.planned_batch / request.share
    patch_size = request.patch_size or _find_largest_patch(request, allowed)
    check_patch_size(patch_size, request.stride)
    if request.samples is not None:
        return patch_size, request.samples
    affordable = int(allowed / (math.prod(patch_size) * request.views))
    return patch_size, max(1, affordable // request.parts) * request.parts


def check_patch_size(patch_size: Sequence[int], stride: Sequence[int]) -> None:
    """Raise ValueError unless the patch divides by the strides and keeps 2 bottleneck cells."""
    if len(patch_size) != len(stride):
        raise ValueError(
            f"training.patch_size: found {list(patch_size)}, allowed are {len(stride)} numbers here"
        )
    for size, step in zip(patch_size, stride, strict=True):
        if size % step or size < 2 * step:
            raise ValueError(
                f"training.patch_size: found {list(patch_size)}, allowed are multiples of the "
                f"network's total strides {list(stride)}, at least {[2 * s for s in stride]}"
            )


def _find_largest_patch(request: BudgetRequest, allowed: float) -> tuple[int, ...]:
    """Shrink the planned patch step by step, longest relative axis first, until it fits."""
    least = [
        min(p, LEAST_CELLS * s) for p, s in zip(request.planned_patch, request.stride, strict=True)
    ]
    patch_size = [p // s * s for p, s in zip(request.planned_patch, request.stride, strict=True)]
    patch_size = _leave_positions(patch_size, request)
    enough = request.planned_batch if request.least is None else request.least
    if request.parts > 1:
        enough = FEWEST_VOLUMES * request.parts
    while math.prod(patch_size) * request.views * enough > allowed:
        free = [a for a, size in enumerate(patch_size) if size - request.stride[a] >= least[a]]
        if not free:
            break
        widest = max(free, key=lambda a: patch_size[a] / request.planned_patch[a])
        patch_size[widest] -= request.stride[widest]
    return tuple(patch_size)


def _leave_positions(patch_size: list[int], request: BudgetRequest) -> list[int]:
    """Shorten the position axis until S clearly different positions exist in a median volume."""
    axis = request.axis - (3 - len(patch_size))
    if request.parts < 2 or axis < 0 or not request.median:
        return patch_size
    step = request.stride[axis]
    room = request.median[request.axis] * 2 / 3
    while patch_size[axis] > room and patch_size[axis] - step >= 2 * step:
        patch_size[axis] -= step
    return patch_size


def find_raw_patch(patch_size: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """Raw patch to read: at least the patch, with a margin that is even on both sides together."""
    sizes = [max(c, w) for c, w in zip(patch_size, wanted, strict=True)]
    return tuple(size + (size - c) % 2 for c, size in zip(patch_size, sizes, strict=True))


def complete_median_shape(median: Sequence[float], dimension: int) -> tuple[float, ...]:
    """Median volume on three axes; nnU-Net's 2D plans state two, the slices being unlimited."""
    return tuple(median) if len(median) == 3 else (math.inf, *median)
