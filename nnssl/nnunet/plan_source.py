"""What a checkpoint says about the network that it holds, and the network that plans describe."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn


@dataclass(frozen=True)
class PlanSource:
    """What a checkpoint says about itself.

    Attributes:
        dataset: Dataset it was trained on.
        name: Name of its configuration.
        plans: Its plans.
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
        """2 or 3."""
        return len(self.configuration["patch_size"])

    @property
    def strides(self) -> list[int]:
        """See :func:`total_strides`."""
        return total_strides(self.configuration)


def total_strides(configuration: Mapping[str, Any]) -> list[int]:
    """Product of all strides, per axis; a patch is divisible by them."""
    stages = configuration["architecture"]["arch_kwargs"]["strides"]
    return [math.prod(axis) for axis in zip(*stages, strict=True)]


def channels_of(dataset: Mapping[str, Any]) -> int:
    """Number of input channels that ``dataset.json`` names."""
    return len(dataset.get("channel_names", dataset.get("modality", {})))


def source_of(checkpoint: Mapping[str, Any]) -> PlanSource:
    """Dataset, plans and configuration of a checkpoint of nnSSL or nnU-Net v2.

    Args:
        checkpoint: As read, with the key ``network_weights``.

    Raises:
        ValueError: It does not say by which plans it was trained, or they are incomplete.
    """
    own, stock = (checkpoint.get(key) or {} for key in ("nnssl", "init_args"))
    plans = own.get("plans", stock.get("plans"))
    name = own.get("configuration", stock.get("configuration"))
    if not isinstance(plans, Mapping) or name not in plans.get("configurations", {}):
        raise ValueError(
            "it does not say by which plans and configuration it was trained; give a checkpoint "
            "that an nnSSL or nnU-Net v2 trainer wrote (checkpoint_final.pth)"
        )
    try:
        manager = PlansManager(copy.deepcopy(dict(plans))).get_configuration(name)
        source = PlanSource(
            dataset=own.get("dataset") or plans["dataset_name"],
            name=str(name),
            plans=plans,
            configuration=manager.configuration,
            channels=_input_channels(checkpoint["network_weights"]),
        )
        if len(source.strides) != source.dimension:
            raise ValueError(f"strides of {len(source.strides)} axes, patch of {source.dimension}")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"its plans or weights are incomplete ({error!r})") from error
    return source


def _input_channels(weights: Mapping[str, Any]) -> int:
    kernels = [tensor for tensor in weights.values() if getattr(tensor, "ndim", 0) > 2]
    if not kernels:
        raise ValueError("network_weights has no convolution")
    return int(kernels[0].shape[1])


def planned_network(
    plans: Mapping[str, Any], configuration: str, dataset: Mapping[str, Any]
) -> nn.Module:
    """The network of a configuration, with the input channels and labels of ``dataset.json``.

    Raises:
        ValueError: It cannot be built.
    """
    manager = PlansManager(copy.deepcopy(dict(plans))).get_configuration(configuration)
    try:
        return get_network_from_plans(  # type: ignore[no-any-return]
            manager.network_arch_class_name,
            manager.network_arch_init_kwargs,
            manager.network_arch_init_kwargs_req_import,
            channels_of(dataset),
            len(dataset["labels"]),
            deep_supervision=True,
        )
    except (KeyError, TypeError, ValueError, ImportError, RuntimeError, AssertionError) as error:
        raise ValueError(f"the network of {configuration} cannot be built ({error!r})") from error
