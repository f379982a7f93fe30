"""A small copy of one configuration of nnU-Net plans, for quickstart, tests and CPU studies.

Such plans compare methods cheaply at equal schedules; they say nothing absolute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnssl.nnunet.plans import (
    RESNET,
    change_spacing,
    find_configuration,
    keep_one_configuration,
    warn_of_padding,
)

SMALLEST_BOTTLENECK = 4  # nnU-Net's own minimum, in cells per axis
DEFAULTS: dict[int, dict[str, Any]] = {
    2: {"spacing": [2.5], "patch": [80], "batch": 8, "features": [16, 32, 64, 128]},
    3: {"spacing": [0.0], "patch": [32], "batch": 4, "features": [8, 16, 32]},
}


def shrink_plans(
    plans: Mapping[str, Any],
    configuration: str,
    name: str,
    spacing: Sequence[float] | None = None,
    patch: Sequence[int] | None = None,
    batch: int | None = None,
    features: Sequence[int] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Shrink one configuration; what is not given is the default of its dimension.

    Lists have one number for all axes or one per axis (array order).

    Args:
        plans: Content of a plans file; it is not changed.
        configuration: ``2d`` or ``3d_fullres``, for instance.
        name: Name of the new plans.
        spacing: Target spacing in mm; 0 keeps the planned one.
        patch: Patch size in voxels.
        batch: Batch size.
        features: Channels of each stage.

    Returns:
        The new plans, which have this configuration only, and warnings for the user.

    Raises:
        ValueError: Unknown or inherited configuration, or sizes that make no network.
    """
    planned = find_configuration(plans, configuration)
    dimension = len(planned["patch_size"])
    given = {"spacing": spacing, "patch": patch, "batch": batch, "features": features}
    size = {**DEFAULTS[dimension], **{k: v for k, v in given.items() if v is not None}}
    for axes in ("spacing", "patch"):
        size[axes] = _repeat(axes, size[axes], dimension)
    _check(**size)
    pairs = zip(size["spacing"], planned["spacing"], strict=True)
    small = change_spacing(planned, [new if new > 0 else mm for new, mm in pairs])
    small.update(batch_size=size["batch"], patch_size=size["patch"])
    _shrink_network(small, size["features"])
    return keep_one_configuration(plans, name, configuration, small), warn_of_padding(small)


def plan_strides(
    patch: Sequence[int], spacing: Sequence[float], stages: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Strides and kernel sizes of all stages, as nnU-Net plans them.

    From the second stage on, an axis is halved while it stays divisible and at least
    ``SMALLEST_BOTTLENECK`` long, and is no coarser than twice the finest axis. A kernel is 1 along
    axes that are coarser than that.

    Args:
        patch: In voxels.
        spacing: In mm.
        stages: Number of stages.

    Raises:
        ValueError: At some stage no axis can be halved.
    """
    size, resolution = list(patch), list(spacing)
    strides, kernels = [], []
    for stage in range(stages):
        divisible = [n % 2 == 0 and n // 2 >= SMALLEST_BOTTLENECK for n in size]
        coarse = [mm > 2 * min(resolution) for mm in resolution]
        axes = zip(divisible, coarse, strict=True)
        stride = [2 if stage and halved and not kept else 1 for halved, kept in axes]
        if stage and max(stride) == 1:
            raise ValueError(
                f"patch {list(patch)} allows only {stage} stages; features has {stages} numbers: "
                "give fewer features or a larger patch with more factors of 2"
            )
        size = [n // step for n, step in zip(size, stride, strict=True)]
        resolution = [mm * step for mm, step in zip(resolution, stride, strict=True)]
        strides.append(stride)
        kernels.append([1 if mm > 2 * min(resolution) else 3 for mm in resolution])
    return strides, kernels


def _repeat(parameter: str, values: Sequence[Any], dimension: int) -> list[Any]:
    if len(values) not in (1, dimension):
        raise ValueError(f"{parameter} is {list(values)}; it takes 1 or {dimension} numbers here")
    return list(values) * (dimension if len(values) == 1 else 1)


def _check(
    spacing: Sequence[float], patch: Sequence[int], batch: int, features: Sequence[int]
) -> None:
    if len(features) < 2 or min(features) < 1:
        raise ValueError(f"features is {features}; need two or more positive numbers")
    if min(patch) < SMALLEST_BOTTLENECK:
        raise ValueError(f"patch is {patch}; each must be at least {SMALLEST_BOTTLENECK}")
    if min(spacing) < 0:
        raise ValueError(f"spacing is {spacing}; it must be positive, or 0 to keep the planned")
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1")


def _shrink_network(small: dict[str, Any], features: Sequence[int]) -> None:
    if small["architecture"].get("network_class_name") == RESNET:
        raise ValueError(
            "the plans are those of a ResNet, which is not made smaller; shrink nnU-Net's plans "
            "(-p nnUNetPlans), and run nnssl_plan_resnet50 with the small ones (-p)"
        )
    network, stages = small["architecture"]["arch_kwargs"], len(features)
    strides, kernels = plan_strides(small["patch_size"], small["spacing"], stages)
    network.update(
        n_stages=stages,
        features_per_stage=list(features),
        strides=strides,
        kernel_sizes=kernels,
        n_conv_per_stage_decoder=network["n_conv_per_stage_decoder"][:1] * (stages - 1),
    )
    if "n_conv_per_stage" in network:
        network["n_conv_per_stage"] = network["n_conv_per_stage"][:1] * stages
    if "n_blocks_per_stage" in network:  # residual encoder
        network["n_blocks_per_stage"] = [1] + [2] * (stages - 1)
