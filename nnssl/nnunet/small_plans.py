"""A small copy of one configuration of nnU-Net plans, for quickstart, tests and CPU studies.

Such plans compare methods cheaply at equal schedules; they say nothing absolute.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SMALLEST_BOTTLENECK = 4  # nnU-Net's own minimum, in cells per axis
PADDING_WARNING = 1.5  # a patch this many times the median image is mostly padding


@dataclass(frozen=True)
class SmallPlan:
    """Sizes of a small plan; lists have one number for all axes or one per axis (array order).

    Args:
        spacing: Target spacing in mm; 0 keeps the planned one.
        patch: Patch size in voxels.
        batch: Batch size.
        features: Channels of each stage.
    """

    spacing: Sequence[float]
    patch: Sequence[int]
    batch: int
    features: Sequence[int]


DEFAULTS = {
    2: SmallPlan(spacing=[2.5], patch=[80], batch=8, features=[16, 32, 64, 128]),
    3: SmallPlan(spacing=[0.0], patch=[32], batch=4, features=[8, 16, 32]),
}


def small_plans(
    plans: dict[str, Any],
    configuration: str,
    name: str,
    spacing: Sequence[float] | None = None,
    patch: Sequence[int] | None = None,
    batch: int | None = None,
    features: Sequence[int] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Shrink one configuration; what is not given is the default of its dimension.

    Args:
        plans: Content of a plans file; it is not changed.
        configuration: ``2d`` or ``3d_fullres``, for instance.
        name: Name of the new plans.
        spacing: See :class:`SmallPlan`.
        patch: See :class:`SmallPlan`.
        batch: See :class:`SmallPlan`.
        features: See :class:`SmallPlan`.

    Returns:
        The new plans, which have this configuration only, and warnings for the user.

    Raises:
        ValueError: Unknown or inherited configuration, or sizes that make no network.
    """
    planned = configuration_of(plans, configuration)
    dimension = len(planned["patch_size"])
    default = DEFAULTS[dimension]
    size = SmallPlan(
        per_axis("spacing", default.spacing if spacing is None else spacing, dimension),
        per_axis("patch", default.patch if patch is None else patch, dimension),
        default.batch if batch is None else batch,
        list(default.features if features is None else features),
    )
    _check(plans, name, size)
    small = _shrink(planned, size)
    return with_one_configuration(plans, name, configuration, small), padding_warnings(small)


def configuration_of(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One configuration of plans.

    Raises:
        ValueError: It is unknown, or inherits from another.
    """
    known = plans.get("configurations", {})
    if name not in known:
        raise ValueError(f"configuration is {name!r}; the plans have {', '.join(known) or 'none'}")
    if parent := known[name].get("inherits_from"):
        raise ValueError(f"configuration {name} inherits from {parent}: take {parent} instead")
    found: dict[str, Any] = known[name]
    return found


def with_one_configuration(
    plans: Mapping[str, Any], name: str, configuration: str, content: Mapping[str, Any]
) -> dict[str, Any]:
    """Copy of plans under another name, with this configuration alone and its own data folder.

    The configuration is a single stage: what ties it to a cascade is left out.
    """
    single = {key: value for key, value in content.items() if key != "next_stage"}
    single["data_identifier"] = f"{name}_{configuration}"
    rest = {key: value for key, value in plans.items() if key != "configurations"}
    return copy.deepcopy({**rest, "plans_name": name, "configurations": {configuration: single}})


def refuse_name(plans: Mapping[str, Any], name: str) -> None:
    """Raises ValueError when the new plans would have the name of those they are made from."""
    if name == plans.get("plans_name"):
        raise ValueError(f"name is {name!r}, that of the plans it starts from; give another --name")


def with_spacing(planned: Mapping[str, Any], spacing: Sequence[float]) -> dict[str, Any]:
    """Copy of a configuration with another spacing, the median image in its voxels."""
    median = [
        voxels * mm / new
        for voxels, mm, new in zip(
            planned["median_image_size_in_voxels"], planned["spacing"], spacing, strict=True
        )
    ]
    changed = copy.deepcopy(dict(planned))
    changed.update(spacing=list(spacing), median_image_size_in_voxels=median)
    return changed


def padding_warnings(planned: Mapping[str, Any]) -> list[str]:
    """A sentence for every axis along which the patch is much longer than the median image."""
    pairs = zip(planned["patch_size"], planned["median_image_size_in_voxels"], strict=True)
    return [
        f"patch axis {axis} is {length} voxels, the median image only {median:.0f}: mostly padding"
        for axis, (length, median) in enumerate(pairs)
        if length > PADDING_WARNING * median
    ]


def per_axis(parameter: str, values: Sequence[Any], dimension: int) -> list[Any]:
    """One number for all axes, or one per axis."""
    if len(values) not in (1, dimension):
        raise ValueError(f"{parameter} is {list(values)}; it takes 1 or {dimension} numbers here")
    return list(values) * (dimension if len(values) == 1 else 1)


def strides_and_kernels(
    patch: Sequence[int], spacing: Sequence[float], stages: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Strides and kernel sizes of all stages, as nnU-Net plans them.

    From the second stage on, an axis is halved while it stays divisible and at least
    ``SMALLEST_BOTTLENECK`` long, and is no coarser than twice the finest axis. A kernel is 1 along
    axes that are coarser than that.

    Args:
        patch: Patch size in voxels.
        spacing: Spacing in mm.
        stages: Number of stages.

    Raises:
        ValueError: At some stage no axis can be halved.
    """
    size, resolution = list(patch), list(spacing)
    strides, kernels = [], []
    for stage in range(stages):
        stride = [
            _stride(n, mm, min(resolution)) if stage else 1
            for n, mm in zip(size, resolution, strict=True)
        ]
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


def _stride(length: int, spacing: float, finest: float) -> int:
    divisible = length % 2 == 0 and length // 2 >= SMALLEST_BOTTLENECK
    return 2 if divisible and spacing <= 2 * finest else 1


def _check(plans: dict[str, Any], name: str, size: SmallPlan) -> None:
    refuse_name(plans, name)
    if len(size.features) < 2 or min(size.features) < 1:
        raise ValueError(f"features is {size.features}; need two or more positive numbers")
    if min(size.patch) < SMALLEST_BOTTLENECK:
        raise ValueError(f"patch is {size.patch}; each must be at least {SMALLEST_BOTTLENECK}")
    if min(size.spacing) < 0:
        raise ValueError(
            f"spacing is {size.spacing}; it must be positive, or 0 to keep the planned"
        )
    if size.batch < 1:
        raise ValueError(f"batch is {size.batch}; it must be at least 1")


def _shrink(planned: dict[str, Any], size: SmallPlan) -> dict[str, Any]:
    pairs = zip(size.spacing, planned["spacing"], strict=True)
    small = with_spacing(planned, [new if new > 0 else mm for new, mm in pairs])
    small.update(batch_size=size.batch, patch_size=size.patch)
    _shrink_network(small["architecture"]["arch_kwargs"], size, small["spacing"])
    return small


def _shrink_network(network: dict[str, Any], size: SmallPlan, spacing: Sequence[float]) -> None:
    stages = len(size.features)
    strides, kernels = strides_and_kernels(size.patch, spacing, stages)
    network.update(
        n_stages=stages, features_per_stage=size.features, strides=strides, kernel_sizes=kernels
    )
    network["n_conv_per_stage_decoder"] = network["n_conv_per_stage_decoder"][:1] * (stages - 1)
    if "n_conv_per_stage" in network:
        network["n_conv_per_stage"] = network["n_conv_per_stage"][:1] * stages
    if "n_blocks_per_stage" in network:  # residual encoder
        network["n_blocks_per_stage"] = [1] + [2] * (stages - 1)
