"""One batch, halved over two processes, has the loss and the gradients of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# A gradient sums terms of every voxel of all views (4 samples x 2 views x 16 x 16 = 2048) that have
# passed about 20 layers which sum as many. Two orders of summation differ by a random walk of that
# many roundings, sqrt(20 * 2048), each 2^-24 of the terms. These are as large as the largest
# gradient of the network, whatever their sum: that of a bias before a normalisation is 0.
ROUNDING = (20 * 2048) ** 0.5 * 2.0**-24

Make = Callable[[], nn.Module]
MakeBatch = Callable[[], dict[str, Any]]


def check_halves(make: Make, batch: MakeBatch, two_processes: Callable[..., list[Any]]) -> None:
    """Compares an objective on four samples with itself on two samples in each of two processes.

    Args:
        make: makes the objective; can be pickled, and its normalisation knows no batch.
        batch: makes the four samples and their views; can be pickled.
        two_processes: the fixture of that name.
    """
    made = make()
    loss = made(batch())["loss"]
    loss.backward()
    halves = two_processes(_half, make, batch, made.state_dict())
    mean = sum(float(half["loss"]) for half in halves) / 2
    assert mean == pytest.approx(float(loss.detach()), rel=1e-5)
    gradients = _gradients(made)
    error = ROUNDING * max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        for half in halves:
            torch.testing.assert_close(half["gradients"][name], gradient, rtol=0, atol=error)


def _half(rank: int, make: Make, batch: MakeBatch, state: dict[str, Any]) -> dict[str, Any]:
    made = make()
    made.load_state_dict(state)
    distributed = DistributedDataParallel(made)  # kept: its hooks live as long as it does
    terms = distributed(_rows(batch(), slice(2 * rank, 2 * rank + 2)))
    terms["loss"].backward()
    return {"loss": terms["loss"].detach(), "gradients": _gradients(made)}


def _rows(whole: dict[str, Any], rows: slice) -> dict[str, Any]:
    part = {k: v[rows] for k, v in whole.items() if isinstance(v, Tensor | list)}
    views = whole["views"].items()
    part["views"] = {n: type(v)(v.image[rows], v.matrix[rows], {}) for n, v in views}
    return part


def _gradients(made: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
