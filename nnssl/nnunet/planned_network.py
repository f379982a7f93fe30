"""The network that plans describe: built in one place, and refused where nnSSL cannot use it."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnssl.nnunet.plans import PLAIN, RESIDUAL, RESNET, UNETS, count_channels

SUPPORTED = (
    PLAIN,
    RESIDUAL,
    RESNET,
    f"{UNETS}.residual_unet.ResidualEncoderUNet",  # nnU-Net's name of it for plans of old versions
)
# Parts that plans name and nnU-Net looks up and calls. Any other name could run any code.
PARTS = {
    "conv_op": ("Conv1d", "Conv2d", "Conv3d"),
    "norm_op": tuple(f"{kind}Norm{d}d" for kind in ("Instance", "Batch") for d in (1, 2, 3)),
    "dropout_op": ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d"),
    "nonlin": ("LeakyReLU", "ReLU", "ELU", "GELU", "SiLU", "Mish", "PReLU"),
}
# The most of what makes a network large. nnU-Net plans at most 8 stages, 512 features, 9 blocks.
MOST = {
    "n_stages": 16,
    "features_per_stage": 8192,
    "stem_channels": 8192,
    "bottleneck_channels": 8192,
    "n_conv_per_stage": 64,
    "n_blocks_per_stage": 64,
    "n_conv_per_stage_decoder": 64,
}
MOST_WEIGHTS = 5 * 10**8  # 2 GB; ten times nnU-Net's largest encoder


def check_supported(configuration_manager: Any) -> None:
    """Refuse a network that nnSSL does not know, before anything that the plans name is looked up.

    Plans come from files of others too. nnU-Net imports and calls the names in them, so only these
    U-Nets and torch's own convolutions, norms, dropouts and activations may stand there.

    Raises:
        ValueError: with the entry, what was found and what is allowed.
    """
    name = configuration_manager.network_arch_class_name
    if name not in SUPPORTED:
        raise ValueError(
            f"The plans ask for the network {name!r}; nnSSL works with {PLAIN}, {RESIDUAL} and "
            f"{RESNET}. Plan with nnU-Net's default or residual-encoder planners, or with "
            "nnssl_plan_resnet50."
        )
    knobs = configuration_manager.network_arch_init_kwargs
    for part in configuration_manager.network_arch_init_kwargs_req_import:
        if part not in PARTS:
            raise ValueError(
                f"The plans have {part!r} looked up by name; allowed: {', '.join(PARTS)}"
            )
    for part, allowed in PARTS.items():
        found = knobs.get(part)
        if found is not None and not _is_layer(found, allowed):
            raise ValueError(
                f"The plans ask for {part} = {found!r}; allowed: {', '.join(allowed)} of torch.nn"
            )
    for knob, most in MOST.items():
        found = knobs.get(knob)
        numbers = found if isinstance(found, list | tuple) else [found]
        if found is not None and not _are_counts(numbers, most):
            raise ValueError(
                f"The plans ask for {knob} = {found!r:.80}; allowed: whole numbers from 1 to "
                f"{most}, for at most {MOST['n_stages']} stages"
            )


def _check_size(knobs: Mapping[str, Any]) -> None:
    """Refuse (``ValueError``) an encoder that no memory holds; the decoder is as large."""
    layers = knobs.get("n_conv_per_stage") or knobs["n_blocks_per_stage"]
    values = (layers, knobs["features_per_stage"], knobs["kernel_sizes"])
    lists = (
        each if isinstance(each, list | tuple) else [each] * knobs["n_stages"] for each in values
    )
    weights = sum(
        count
        * features**2
        * math.prod(kernel if isinstance(kernel, list | tuple) else [kernel] * 3)
        for count, features, kernel in zip(*lists, strict=True)
    )
    if weights > MOST_WEIGHTS:
        raise ValueError(f"{weights:,} weights; allowed are {MOST_WEIGHTS:,}")


def _are_counts(numbers: Sequence[Any], most: int) -> bool:
    fit = all(type(number) is int and 1 <= number <= most for number in numbers)
    return fit and len(numbers) <= MOST["n_stages"]


def _is_layer(name: Any, allowed: Collection[str]) -> bool:
    """Whether it is the dotted name of one of torch's layers, by its short or its full path."""
    short = str(name).rpartition(".")[2]
    holders = ("torch.nn", getattr(nn, short).__module__) if short in allowed else ()
    return name in [f"{holder}.{short}" for holder in holders]


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

    With `deep_supervision` it returns the outputs of all resolutions.

    Raises:
        ValueError: it is none that nnSSL supports, or cannot be built.
    """
    check_supported(configuration_manager)
    try:
        _check_size(configuration_manager.network_arch_init_kwargs)
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
    """As `build_network`, with the input channels and labels of ``dataset.json``."""
    manager = PlansManager(copy.deepcopy(dict(plans))).get_configuration(configuration)
    channels, labels = count_channels(dataset), len(dataset["labels"])
    return build_network(manager, channels, labels, deep_supervision=True)
