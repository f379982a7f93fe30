"""Plans for a target dataset that keep the architecture of a pre-training checkpoint.

The target's own plans give the rest: spacing, normalisation, resampling, and the patch as nearly as
the checkpoint's strides and the planned memory allow.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl.finetuning.structure import describe
from nnssl.nnunet.checkpoint import find_plans
from nnssl.nnunet.planned_network import SUPPORTED, build_planned_network, check_supported
from nnssl.nnunet.plans import (
    BATCH,
    NORMALISATION,
    PATCH,
    SPACING,
    change_spacing,
    count_channels,
    find_configuration,
    keep_one_configuration,
    make_architecture,
    warn_of_padding,
)
from nnssl.nnunet.weight_files import ADAPTATION_PLAN, find_inputs

NETWORKS = {name.rpartition(".")[2]: name for name in reversed(SUPPORTED)}  # by class
KEPT_INPUTS = ("normalization_schemes", "use_mask_for_norm")
LEAST_CELLS = 2  # bottleneck cells along an axis; InstanceNorm refuses a single cell
LEAST_BATCH = 2  # nnU-Net's own minimum
ROUNDING = 1e-6
FULL = 1 + ROUNDING  # share of the planned memory
UNLIKE = 2  # spacings whose anisotropy differs by more than this factor are told to the user


@dataclass(frozen=True)
class PlanSource:
    """What a checkpoint says about itself.

    Attributes:
        dataset: Dataset it was trained on.
        name: Name of its configuration.
        configuration: The configuration, inherited entries filled in.
        channels: Input channels of its first convolution.
    """

    dataset: str
    name: str
    plans: Mapping[str, Any]
    configuration: Mapping[str, Any]
    channels: int

    @property
    def dimension(self) -> int:
        return len(self.configuration["patch_size"])

    @property
    def strides(self) -> list[int]:
        return find_total_strides(self.configuration)


def find_total_strides(configuration: Mapping[str, Any]) -> list[int]:
    """Product of all strides, per axis; a patch is divisible by them."""
    stages = configuration["architecture"]["arch_kwargs"]["strides"]
    return [math.prod(axis) for axis in zip(*stages, strict=True)]


def read_source(checkpoint: Mapping[str, Any]) -> PlanSource:
    """Dataset, plans and configuration of weights that were read.

    Weights of other makers show their architecture by their names and shapes.

    Raises:
        ValueError: They are no U-Net's, or the plans by which they were trained are incomplete.
    """
    found = find_plans(checkpoint)
    if found is None:
        return _read_weights_alone(checkpoint)
    plans, name = found
    try:
        manager = PlansManager(copy.deepcopy(dict(plans))).get_configuration(name)
        check_supported(manager)
        source = PlanSource(
            dataset=(checkpoint.get("nnssl") or {}).get("dataset") or plans["dataset_name"],
            name=name,
            plans=plans,
            configuration=manager.configuration,
            channels=_input_channels(checkpoint["network_weights"]),
        )
        if len(source.strides) != source.dimension:
            raise ValueError(f"strides of {len(source.strides)} axes, patch of {source.dimension}")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"its plans or weights are incomplete ({error!r})") from error
    return source


def _read_weights_alone(checkpoint: Mapping[str, Any]) -> PlanSource:
    """As `read_source`, where no plans of nnU-Net are told."""
    structure = describe(checkpoint["network_weights"])
    if structure is None:
        raise ValueError("its tensors have no names of nnU-Net's U-Nets")
    inputs = find_inputs(checkpoint) or {}
    architecture = make_architecture(
        NETWORKS[structure.architecture],
        structure.features,
        structure.strides,
        structure.blocks,
        structure.levels or None,
        structure.kernels,
    )
    told = (checkpoint.get(ADAPTATION_PLAN) or {}).get("pretrain_plan") or {}
    least = find_total_strides({"architecture": architecture})
    configuration = {
        "spacing": [1.0] * structure.dimension,
        "patch_size": [LEAST_CELLS * step for step in least],
        "batch_size": LEAST_BATCH,
        **{key: inputs[key] for key in (*KEPT_INPUTS, "spacing", "patch_size") if key in inputs},
        "architecture": architecture,
    }
    name = "3d_fullres" if structure.dimension == 3 else "2d"
    dataset = str(told.get("dataset_name", "Weights"))
    return PlanSource(dataset, name, told, configuration, structure.channels)


def _input_channels(weights: Mapping[str, Any]) -> int:
    kernels = [tensor for tensor in weights.values() if getattr(tensor, "ndim", 0) > 2]
    if not kernels:
        raise ValueError("network_weights has no convolution")
    return int(kernels[0].shape[1])


def plan_like(
    target: Mapping[str, Any],
    dataset: Mapping[str, Any],
    source: PlanSource,
    configuration: str,
    name: str,
    keep: Collection[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Plans of the target with the checkpoint's architecture.

    Batch and patch fill the memory that the target's plans fill, by nnU-Net's own measure (the
    size of all feature maps): at the multiple of the strides nearest to the planned patch the
    batch is as large as this memory and the planned voxels per step allow; the patch shrinks where
    even two do not fit.

    Args:
        target: Content of the target's plans file; it is not changed.
        dataset: Content of the target's ``dataset.json``.
        source: See `read_source`.
        configuration: Configuration of the target.
        name: Name of the new plans.
        keep: What is the checkpoint's rather than the target's, of ``KEEPABLE``. A kept spacing
            keeps the planned patch in mm.

    Returns:
        The new plans, which have this configuration only, and remarks for the user.

    Raises:
        ValueError: Another dimension, an unknown configuration, or normalisation to be kept for
            another number of channels.
    """
    planned = find_configuration(target, configuration)
    dimension, channels = len(planned["patch_size"]), count_channels(dataset)
    if source.dimension != dimension:
        raise ValueError(
            f"the checkpoint is a {source.dimension}D network (configuration {source.name}), "
            f"{configuration} is {dimension}D; weights of one do not fit the other. Give a "
            f"configuration of {source.dimension} dimensions (-c), or another checkpoint"
        )
    spacing = source.configuration["spacing"] if SPACING in keep else planned["spacing"]
    new = change_spacing(planned, spacing)
    new["architecture"] = copy.deepcopy(source.configuration["architecture"])
    plans = keep_one_configuration(target, name, configuration, new)
    new = plans["configurations"][configuration]
    if NORMALISATION in keep:
        _keep_normalisation(plans, new, source, channels)
    costs = [_measure_voxel(each, configuration, dataset) for each in (target, plans)]
    too_large = _resize(planned, new, source, costs[1] / costs[0], keep)
    return plans, [*too_large, *warn_of_padding(new), *_remark_on(source, new, channels)]


def _measure_voxel(
    plans: Mapping[str, Any], configuration: str, dataset: Mapping[str, Any]
) -> float:
    """Size of a network's feature maps per voxel of the patch, by nnU-Net's own measure."""
    network: Any = build_planned_network(plans, configuration, dataset)
    strides = find_total_strides(plans["configurations"][configuration])
    return float(network.compute_conv_feature_map_size(strides)) / math.prod(strides)


def _resize(
    planned: Mapping[str, Any],
    new: dict[str, Any],
    source: PlanSource,
    cost: float,
    keep: Collection[str],
) -> list[str]:
    """Sets patch and batch; a remark where they do not fit.

    `cost` is the memory of a voxel in the new network, in voxels of the planned one.
    """
    memory = math.prod(planned["patch_size"]) * planned["batch_size"]  # in planned voxels
    least = source.configuration["batch_size"] if BATCH in keep else LEAST_BATCH

    def find_share(patch: Sequence[int], batch: int) -> float:
        return cost * math.prod(patch) * batch / memory

    if PATCH in keep:
        patch = list(source.configuration["patch_size"])
    else:
        sizes = zip(planned["patch_size"], planned["spacing"], new["spacing"], strict=True)
        wanted = [voxels * old / mm for voxels, old, mm in sizes]
        patch = find_nearest_patch(wanted, source.strides, lambda p: find_share(p, least) <= FULL)
    batch = int(memory / math.prod(patch) / max(cost, 1) + ROUNDING)
    new.update(patch_size=patch, batch_size=least if BATCH in keep else max(batch, least))
    share = find_share(patch, new["batch_size"])
    if share <= FULL:
        return []
    return [
        f"patch {patch} with batch {new['batch_size']} takes {share:.1f} times the memory that the "
        "target's plans take"
    ]


def find_nearest_patch(
    wanted: Sequence[float], strides: Sequence[int], fits: Callable[[Sequence[int]], bool]
) -> list[int]:
    """The patch nearest to a wanted one that divides by the strides and fits.

    Args:
        wanted: Size in voxels.
        strides: Total stride of the network, per axis.
        fits: Patch -> whether it fits the memory; where none does, the smallest is returned.
    """
    least = [step * LEAST_CELLS if step > 1 else 1 for step in strides]
    patch = [
        max(smallest, math.floor(size / step + 0.5) * step)
        for size, step, smallest in zip(wanted, strides, least, strict=True)
    ]
    while not fits(patch):
        free = [a for a, size in enumerate(patch) if size - strides[a] >= least[a]]
        if not free:
            break
        widest = max(free, key=lambda axis: patch[axis] / wanted[axis])
        patch[widest] -= strides[widest]
    return patch


def _keep_normalisation(
    plans: dict[str, Any], new: dict[str, Any], source: PlanSource, channels: int
) -> None:
    """Schemes, masks and intensity statistics of the checkpoint."""
    if source.channels != channels:
        raise ValueError(
            f"normalisation cannot be kept: the checkpoint has {source.channels} input channels, "
            f"the target {channels}; leave '{NORMALISATION}' out of --keep"
        )
    statistics = "foreground_intensity_properties_per_channel"
    if statistics not in source.plans or any(k not in source.configuration for k in KEPT_INPUTS):
        raise ValueError(
            f"the weights tell no normalisation; leave '{NORMALISATION}' out of --keep"
        )
    for entry in KEPT_INPUTS:
        new[entry] = list(source.configuration[entry])
    plans[statistics] = copy.deepcopy(source.plans[statistics])


def _remark_on(source: PlanSource, new: Mapping[str, Any], channels: int) -> Iterator[str]:
    old, now = source.configuration["spacing"], new["spacing"]
    ratios = [a / min(old) / (b / min(now)) for a, b in zip(old, now, strict=True)]
    if not all(1 / UNLIKE <= ratio <= UNLIKE for ratio in ratios):
        shown = [[round(mm, 3) for mm in spacing] for spacing in (old, now)]
        yield (
            f"the checkpoint's strides and kernels were planned for spacing {shown[0]}, the target "
            f"has {shown[1]}"
        )
    if source.channels != channels:
        yield (
            f"the checkpoint has {source.channels} input channels, the target {channels}: "
            "fine-tuning adapts the first convolution (each channel starts from the mean over the "
            "checkpoint's, scaled); all other layers are taken as they are"
        )
