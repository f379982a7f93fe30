"""The frozen encoder: computed without gradient, and let go without the momentum of that time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nnssl.modules import unet


def freeze_or_release(network: nn.Module, optimizer: Optimizer, epoch: int, begun: bool) -> None:
    """Called at the beginning of every epoch, and again where a run is resumed inside one.

    While a group of the optimiser is frozen (`frozen_epochs`, see `group_parameters`), the stages
    at the beginning of the encoder that hold nothing else run without gradient: there is no
    backward pass through them. Their parameters keep `requires_grad`, and get gradients of zero, as
    DistributedDataParallel asks for every parameter that it knew when it was built. They normalise
    by their running statistics, where they have such, which then do not move either. When a group
    is released, what the optimiser remembers of it is forgotten.

    It is called behind `network.train()`.

    Args:
        network: the planned U-Net.
        optimizer: with the groups of `group_parameters`.
        epoch: that begins.
        begun: whether steps of it have been taken.
    """
    lengths = [group.get("frozen_epochs", 0) for group in optimizer.param_groups]
    groups = list(zip(lengths, optimizer.param_groups, strict=True))
    frozen = {id(p) for length, group in groups if epoch < length for p in group["params"]}
    held: list[nn.Parameter] = []
    for part in unet.encoder_parts(network):
        vars(part).pop("forward", None)
    for part in takewhile(lambda p: _is_frozen(p, frozen), unet.encoder_parts(network)):
        held += part.parameters()
        if held:  # the first stage of a ResNet has no parameters
            part.eval()
            part.forward = partial(_run_without_gradient, part, tuple(held))
    for length, group in groups:
        if epoch == length > 0 and not begun:
            for parameter in group["params"]:
                optimizer.state.pop(parameter, None)


def _is_frozen(part: nn.Module, frozen: Collection[int]) -> bool:
    return all(id(parameter) in frozen for parameter in part.parameters())


def _run_without_gradient(part: nn.Module, held: Sequence[nn.Parameter], x: Tensor) -> Tensor:
    """The part's output, to which the parameters up to it are bound with factor 0."""
    with torch.no_grad():
        output: Tensor = type(part).forward(part, x)
    if torch.is_grad_enabled():
        output = output + 0 * torch.stack([p.flatten()[0] for p in held]).sum()
    return output
