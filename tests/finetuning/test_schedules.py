"""Rates per group; nnU-Net's own schedule where nothing is asked for."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnssl.finetuning.schedules import PartSchedule


def optimizer(**groups):
    return torch.optim.SGD(
        [
            {"params": [torch.nn.Parameter(torch.zeros(1))], "name": name, **options}
            for name, options in (groups or {"all": {}}).items()
        ],
        0.1,
    )


def rates(schedule, epochs):
    found = []
    for epoch in range(epochs):
        schedule.step(epoch)
        found.append(schedule.get_last_lr())
    return found


@pytest.mark.parametrize(("initial", "epochs"), [(1e-2, 1000), (3e-3, 7)])
def test_equals_nnunets_schedule_exactly(initial, epochs):
    stock, ours = optimizer(), optimizer(all={"lr_scale": 1.0, "frozen_epochs": 0})
    scheduler = PolyLRScheduler(stock, initial, epochs)
    schedule = PartSchedule(ours, initial, epochs)
    for epoch in range(epochs):
        scheduler.step(epoch)
        schedule.step(epoch)
        assert ours.param_groups[0]["lr"] == stock.param_groups[0]["lr"]


def test_scales_and_freezing_by_group():
    parts = optimizer(encoder={"lr_scale": 0.1, "frozen_epochs": 2}, random={})
    encoder, random = zip(*rates(PartSchedule(parts, 1.0, 4), 4), strict=True)
    plain = [(1 - e / 4) ** 0.9 for e in range(4)]
    assert random == pytest.approx(plain)
    assert encoder == pytest.approx([0, 0, 0.1 * plain[2], 0.1 * plain[3]])


def test_warmup_is_linear_and_ends():
    found = [r[0] for r in rates(PartSchedule(optimizer(), 1.0, 100, warmup_epochs=4), 6)]
    factors = [rate / (1 - e / 100) ** 0.9 for e, rate in enumerate(found)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_a_frozen_group_does_not_move_and_keeps_its_gradient():
    frozen = optimizer(encoder={"frozen_epochs": 1})
    PartSchedule(frozen, 1.0, 10)
    (parameter,) = frozen.param_groups[0]["params"]
    (parameter * 3).backward()
    frozen.step()
    assert parameter.grad == 3
    assert parameter == 0
