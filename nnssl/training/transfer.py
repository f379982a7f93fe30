"""What a source checkpoint gives to the network that is fine-tuned, and what to know about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnssl.finetuning.weights import OUTPUT_LAYERS, NewChannels, Transfer, match, wanted_keys
from nnssl.nnunet.weight_search import WeightSource


def plan_transfer(
    network: nn.Module, checkpoint: Mapping[str, Any], knobs: WeightSource, cascade: bool
) -> Transfer:
    """Matches a checkpoint of nnSSL or stock nnU-Net with the network.

    Of a decoder that was trained without skip connections the halves of the convolutions that read
    them stay random.

    Args:
        network: the planned U-Net.
        checkpoint: as read; without the key `nnssl` all of it counts as trained.
        knobs: section `weights`.
        cascade: the second stage of a cascade, whose further input channels start at zero.

    Raises:
        ValueError: less than `min_share` of the wanted parameters loads.
    """
    own = checkpoint.get("nnssl", {})
    wanted = wanted_keys(network, own.get("trained_keys"), knobs.part, knobs.stages)
    channels: NewChannels = "zero" if cascade else "mean"
    inputs = own.get("trained_inputs")
    transfer = match(checkpoint["network_weights"], network.state_dict(), wanted, channels, inputs)
    transfer.require(knobs.min_share)
    return transfer


def same_weights(network: nn.Module, checkpoint: Mapping[str, Any]) -> bool:
    """Whether the network holds exactly these weights, segmentation layers aside."""
    source = checkpoint["network_weights"]
    own = {k: v for k, v in network.state_dict().items() if OUTPUT_LAYERS not in f".{k}"}
    return all(
        key in source and source[key].shape == value.shape and torch.equal(source[key], value.cpu())
        for key, value in own.items()
    )


def input_differences(
    checkpoint: Mapping[str, Any], plans: PlansManager, configuration: str
) -> list[str]:
    """Sentences on what the source's images were like, as far as it differs from today's."""
    source = _source_configuration(checkpoint)
    if source is None:
        return ["The source does not say by which plans its images were prepared."]
    today = plans.get_configuration(configuration)
    lines = []
    for name in ("spacing", "normalization_schemes", "use_mask_for_norm"):
        old, new = (list(_value(manager, name)) for manager in (source, today))
        if old != new:
            lines.append(f"{name}: the weights were trained with {old}, today's plans say {new}")
    return lines


def _source_configuration(checkpoint: Mapping[str, Any]) -> ConfigurationManager | None:
    stock, own = checkpoint.get("init_args", {}), checkpoint.get("nnssl", {})
    plans = own.get("plans", stock.get("plans"))
    name = own.get("configuration", stock.get("configuration"))
    if plans is None or name not in plans.get("configurations", {}):
        return None
    return PlansManager(plans).get_configuration(name)


def _value(manager: ConfigurationManager, name: str) -> Any:
    return getattr(manager, name)
