"""Learning rates: a group for each part of the network, and nnU-Net's schedule for each group."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn
from torch.optim import Optimizer

from nnssl.modules import unet

EXPONENT = 0.9  # of the decay, nnU-Net's


def group_parameters(
    network: nn.Module,
    transferred: Collection[str],
    encoder_lr_scale: float = 1.0,
    decoder_lr_scale: float = 1.0,
    random_lr_scale: float = 1.0,
    freeze_encoder_epochs: int = 0,
    layer_decay: float = 1.0,
    start_decay: float = 0.0,
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
            `requires_grad`: a parameter that is frozen when DDP is built is never synchronised
            (`freeze_or_release` leaves the backward pass out all the same).
        layer_decay: factor on the rate of each encoder stage, against that of the next deeper one;
            below 1 every stage is a group of its own.
        start_decay: weight decay of what was transferred (`pull_to_start`); 0: the optimiser's.
    """
    scales = {"encoder": encoder_lr_scale, "decoder": decoder_lr_scale, "random": random_lr_scale}
    stages = {
        id(parameter): number
        for number, each in enumerate(unet.encoder_stage_parameters(network))
        for parameter in each
    }
    deepest = max(stages.values())
    names = [f"encoder stage {n}" for n in range(deepest + 1)] if layer_decay < 1 else ["encoder"]
    members: dict[str, list[nn.Parameter]] = {name: [] for name in (*names, "decoder", "random")}
    known = set(transferred)
    for key, parameter in network.named_parameters():
        part = key.split(".", 1)[0] if key in known else "random"
        stage = stages.get(id(parameter), 0) if part == "encoder" else 0
        members[names[stage] if part == "encoder" and len(names) > 1 else part].append(parameter)
    groups = []
    for name, parameters in members.items():
        part = name.split()[0]
        scale = scales[part]
        if len(names) > 1 and part == "encoder":
            scale *= layer_decay ** (deepest - names.index(name))
        group = {
            "params": parameters,
            "name": name,
            "lr_scale": scale,
            "frozen_epochs": freeze_encoder_epochs if part == "encoder" else 0,
        }
        pulled = {"weight_decay": start_decay} if start_decay and part != "random" else {}
        if parameters:
            groups.append({**group, **pulled})
    return groups


class PartSchedule:
    """Learning rate of each group as a function of the epoch e.

        lr(e) = initial_lr * (1 - e / epochs)^0.9 * min(1, (f + 1) / (warmup_epochs + 1)) * lr_scale

    with f = e - frozen_epochs, and 0 while f < 0: what is released has a warm-up of its own. From
    epoch `restart` on f = e - restart at most: everything warms up anew (sawtooth).
    `lr_scale` and `frozen_epochs` stand in the groups (see
    `group_parameters`). nnU-Net's own schedulers give every group the same rate; without warm-up
    and with scale 1 the values are exactly those of its `PolyLRScheduler`.

    Args:
        optimizer: its groups are written at every `step`.
        initial_lr: rate at scale 1 before decay.
        epochs: length of the run.
        warmup_epochs: epochs below the full rate.
        restart: epoch of the second warm-up; 0: there is none.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        initial_lr: float,
        epochs: int,
        warmup_epochs: int = 0,
        restart: int = 0,
    ) -> None:
        self.optimizer, self.initial_lr, self.restart = optimizer, initial_lr, restart
        self.epochs, self.warmup_epochs = epochs, warmup_epochs
        self.step(0)

    def step(self, epoch: int) -> None:
        """Sets the rates of an epoch."""
        decayed = self.initial_lr * (1 - epoch / self.epochs) ** EXPONENT
        for group in self.optimizer.param_groups:
            free = epoch - group.get("frozen_epochs", 0)  # epochs since it was released
            if epoch >= self.restart:
                free = min(free, epoch - self.restart)
            warm = min(1.0, (free + 1) / (self.warmup_epochs + 1))
            group["lr"] = 0.0 if free < 0 else decayed * warm * group.get("lr_scale", 1.0)
