"""L2-SP: transferred weights decay towards where they started, not towards zero."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def copy_start(network: nn.Module, transferred: Collection[str]) -> dict[str, Tensor]:
    """The transferred parameters as they are now, under their names."""
    known = set(transferred)
    named = network.named_parameters()
    return {key: parameter.detach().clone() for key, parameter in named if key in known}


def pull_to_start(network: nn.Module, optimizer: Optimizer, start: Mapping[str, Tensor]) -> None:
    """From now on every step of the optimiser takes the penalty

        decay / 2 * ||w - w_start||^2

    for these parameters: `decay` is the weight decay of their group, whose own pull is that of
    decay / 2 * ||w||^2; the gradient gets the difference, -decay * w_start, behind clipping.

    Reference:
        Li, Grandvalet, Davoine: Explicit inductive bias for transfer learning. ICML 2018,
        arXiv:1802.01483.

    Differs from the paper: what started at random has nnU-Net's weight decay.
    """
    named = dict(network.named_parameters())
    starts = {id(named[key]): value.to(named[key]) for key, value in start.items()}

    def add(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and id(parameter) in starts:
                    with torch.no_grad():
                        parameter.grad.sub_(group["weight_decay"] * starts[id(parameter)])

    optimizer.register_step_pre_hook(add)
