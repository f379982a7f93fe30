"""LARS takes lightly's steps where both decay the same, and leaves vectors alone."""

from __future__ import annotations

import copy

import torch
from lightly.utils import lars
from torch import nn

from nnssl.training.lars import LARS


def steps(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_takes_the_steps_of_lightly() -> None:
    torch.manual_seed(0)
    ours, theirs = (copy.deepcopy(m) for m in [nn.Conv2d(3, 4, 3, bias=False)] * 2)
    steps(LARS(ours.parameters(), 50.0, 1.0), ours)
    steps(lars.LARS(theirs.parameters(), 50.0, 0.9, weight_decay=1.0), theirs)
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_vectors_and_zero_weights_take_plain_steps_without_decay() -> None:
    torch.manual_seed(0)
    ours = nn.Linear(3, 4)
    nn.init.zeros_(ours.weight)
    plain = copy.deepcopy(ours)
    for module, optimizer in ((ours, LARS(ours.parameters(), 0.5, 1.0)), (plain, None)):
        optimizer = optimizer or torch.optim.SGD(plain.parameters(), 0.5, momentum=0.9)
        module.weight.grad, module.bias.grad = torch.ones(4, 3), torch.ones(4)
        optimizer.step()
    assert torch.equal(ours.weight, plain.weight)
    assert torch.equal(ours.bias, plain.bias)
