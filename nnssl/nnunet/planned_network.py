"""The network that nnU-Net plans, built the same way with every supported nnU-Net version."""

from __future__ import annotations

import inspect
from typing import Any

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
    trainer: Any, input_channels: int, output_channels: int, deep_supervision: bool
) -> nn.Module:
    """Planned network through the trainer's own `build_network_architecture` (two signatures)."""
    build = trainer.build_network_architecture
    manager = trainer.configuration_manager
    if "plans_manager" in inspect.signature(build).parameters:
        network = build(
            trainer.plans_manager, manager, input_channels, output_channels, deep_supervision
        )
    else:
        network = build(
            manager.network_arch_class_name,
            manager.network_arch_init_kwargs,
            manager.network_arch_init_kwargs_req_import,
            input_channels,
            output_channels,
            deep_supervision,
        )
    assert isinstance(network, nn.Module)
    return network
