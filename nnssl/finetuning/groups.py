"""Parameter groups: each part of the network with a learning rate of its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn


def parameter_groups(
    network: nn.Module,
    transferred: Collection[str],
    encoder_lr_scale: float = 1.0,
    decoder_lr_scale: float = 1.0,
    random_lr_scale: float = 1.0,
    freeze_encoder_epochs: int = 0,
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser, in the order encoder, decoder, random; empty ones are left out.

    `encoder` and `decoder` hold what was transferred, `random` what was not: a network without
    transferred weights is one group, so that scratch trains by the plain schedule.

    Args:
        network: the U-Net.
        transferred: state-dict keys that were loaded.
        encoder_lr_scale: factor on the learning rate of the transferred encoder.
        decoder_lr_scale: the same for the transferred decoder.
        random_lr_scale: the same for everything that started at random.
        freeze_encoder_epochs: epochs in which the transferred encoder has learning rate 0. It keeps
            `requires_grad`: a parameter that is frozen when DDP is built is never synchronised.
    """
    scales = {"encoder": encoder_lr_scale, "decoder": decoder_lr_scale, "random": random_lr_scale}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in scales}
    known = set(transferred)
    for key, parameter in network.named_parameters():
        members[key.split(".", 1)[0] if key in known else "random"].append(parameter)
    return [
        {
            "params": parameters,
            "name": name,
            "lr_scale": scales[name],
            "frozen_epochs": freeze_encoder_epochs if name == "encoder" else 0,
        }
        for name, parameters in members.items()
        if parameters
    ]
