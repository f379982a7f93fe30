"""The network that plans describe: built in one place, and refused where nnSSL cannot use it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

SUPPORTED = ("PlainConvUNet", "ResidualEncoderUNet")


def check_supported(configuration_manager: Any) -> None:
    """Raise ValueError for a network that nnSSL does not pre-train."""
    name = configuration_manager.network_arch_class_name.rsplit(".", 1)[-1]
    if name not in SUPPORTED:
        raise ValueError(
            f"The plans ask for the network {name}; nnSSL works with {' and '.join(SUPPORTED)}. "
            "Plan with nnU-Net's default or residual-encoder planners."
        )


def refuse_cascade(configuration_manager: Any, configuration: str) -> None:
    """Raise ValueError for a configuration that takes the segmentation of a previous stage."""
    if configuration_manager.previous_stage_name is not None:
        raise ValueError(
            f"{configuration} is a cascade's second stage: its input holds a segmentation, which "
            "pre-training has not got. Pre-train 3d_fullres; nnSSLFinetuneTrainer then takes those "
            f"weights on {configuration}."
        )


def build_network(
    configuration_manager: Any,
    input_channels: int,
    output_channels: int,
    deep_supervision: bool = False,
) -> nn.Module:
    """The planned network with nnU-Net's own initial weights, as every nnU-Net trainer builds it.

    Args:
        configuration_manager: nnU-Net's view of one configuration.
        input_channels: of the first convolution.
        output_channels: of the segmentation layers.
        deep_supervision: whether it returns the outputs of all resolutions.

    Raises:
        ValueError: it cannot be built.
    """
    try:
        network = get_network_from_plans(
            configuration_manager.network_arch_class_name,
            configuration_manager.network_arch_init_kwargs,
            configuration_manager.network_arch_init_kwargs_req_import,
            input_channels,
            output_channels,
            deep_supervision=deep_supervision,
        )
    except (KeyError, TypeError, ValueError, ImportError, RuntimeError, AssertionError) as error:
        raise ValueError(f"the planned network cannot be built ({error!r})") from error
    assert isinstance(network, nn.Module)
    return network


def build_planned_network(
    plans: Mapping[str, Any], configuration: str, dataset: Mapping[str, Any]
) -> nn.Module:
    """As `build_network`, with the input channels and labels of ``dataset.json``.

    Raises:
        ValueError: it cannot be built.
    """
    manager = PlansManager(copy.deepcopy(dict(plans))).get_configuration(configuration)
    channels, labels = count_channels(dataset), len(dataset["labels"])
    return build_network(manager, channels, labels, deep_supervision=True)


def count_channels(dataset: Mapping[str, Any]) -> int:
    """Number of input channels that ``dataset.json`` names."""
    return len(dataset.get("channel_names", dataset.get("modality", {})))
