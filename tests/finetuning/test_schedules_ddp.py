"""Schedules on two processes: each sees half of a batch, and the weights go where one would go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnssl.finetuning.freezing import freeze_or_release
from nnssl.finetuning.learning_rates import PartSchedule, group_parameters
from nnssl.finetuning.start_weights import copy_start, pull_to_start
from nnssl.finetuning.weights import asked_keys
from tests.conftest import build_unet

EPOCHS, STEPS = 6, 2
SCHEDULES: dict[str, dict[str, Any]] = {
    "sawtooth": {"frozen": 2, "warmup": 1, "restart": 2},
    "frozen for good": {"frozen": 10**9},
    "layer decay": {"layer_decay": 0.5},
    "L2-SP": {"start_decay": 0.5},
}


def train(
    rank: int, processes: int, frozen: int = 0, warmup: int = 0, restart: int = 0,
    layer_decay: float = 1.0, start_decay: float = 0.0,
) -> dict[str, Tensor]:  # fmt: skip
    """What the fine-tuning trainer does around a step, on this process' part of every batch."""
    network = build_unet(2).double()
    keys = asked_keys(network, "trained")
    groups = group_parameters(network, keys, 1, 1, 1, frozen, layer_decay, start_decay)
    optimizer = torch.optim.SGD(groups, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    if start_decay:
        pull_to_start(network, optimizer, copy_start(network, keys))
    schedule = PartSchedule(optimizer, 0.1, EPOCHS, warmup, restart)
    wrapped: nn.Module = DistributedDataParallel(network) if processes > 1 else network
    for epoch in range(EPOCHS):
        schedule.step(epoch)
        freeze_or_release(network, optimizer, epoch, False)
        for step in range(STEPS):
            seed = torch.Generator().manual_seed(epoch * STEPS + step)
            batch = torch.rand(4, 1, 16, 16, generator=seed, dtype=torch.float64)
            optimizer.zero_grad()
            outputs = wrapped(batch.chunk(processes)[rank])
            sum((output - 1).square().mean() for output in outputs).backward()
            optimizer.step()
    return dict(network.state_dict())


def train_all(rank: int) -> Mapping[str, Mapping[str, Tensor]]:
    return {name: train(rank, 2, **knobs) for name, knobs in SCHEDULES.items()}


def test_two_processes_equal_one_in_every_schedule(two_processes):
    first, second = two_processes(train_all)
    plain = train(0, 1)
    for name, knobs in SCHEDULES.items():
        alone = train(0, 1, **knobs)
        for key, value in alone.items():
            assert torch.equal(first[name][key], second[name][key]), (name, key)
            torch.testing.assert_close(first[name][key], value, rtol=1e-9, atol=1e-12)
        moved = max(float((alone[key] - plain[key]).abs().max()) for key in alone)
        assert moved > 1e-3, name  # the schedule does something
