"""Every parameter is in one group; rates per group; nnU-Net's own schedule if nothing is asked."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnssl.finetuning.learning_rates import PartSchedule, group_parameters
from nnssl.finetuning.start_weights import copy_start, pull_to_start
from nnssl.finetuning.weights import asked_keys


def names(groups):
    return [group["name"] for group in groups]


def test_every_parameter_is_in_exactly_one_group(unet):
    for keys in ([], asked_keys(unet, "encoder"), asked_keys(unet, "trained")):
        groups = group_parameters(unet, keys)
        members = [id(p) for group in groups for p in group["params"]]
        assert sorted(members) == sorted(id(p) for p in unet.parameters())
        torch.optim.SGD(groups, 0.1)


def test_groups_follow_what_was_transferred(make_unet):
    unet = make_unet(2)
    assert names(group_parameters(unet, [])) == ["random"]
    assert names(group_parameters(unet, asked_keys(unet, "encoder"))) == [
        "encoder",
        "random",
    ]
    plain = group_parameters(unet, asked_keys(unet, "trained"))
    assert [(group["lr_scale"], group["frozen_epochs"]) for group in plain] == [(1.0, 0)] * 3
    groups = group_parameters(unet, asked_keys(unet, "trained"), 0.1, 0.2, 0.3, 5)
    assert names(groups) == ["encoder", "decoder", "random"]
    assert [group["lr_scale"] for group in groups] == [0.1, 0.2, 0.3]
    assert [group["frozen_epochs"] for group in groups] == [5, 0, 0]
    encoder = {id(p) for p in unet.encoder.parameters()}
    assert {id(p) for p in groups[0]["params"]} == encoder
    seg_layers = {id(p) for p in unet.decoder.seg_layers.parameters()}
    assert {id(p) for p in groups[2]["params"]} == seg_layers
    assert all(p.requires_grad for p in unet.parameters())


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
        found.append([group["lr"] for group in schedule.optimizer.param_groups])
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


def test_what_is_released_has_a_warmup_of_its_own():
    parts = optimizer(encoder={"frozen_epochs": 3}, random={})
    encoder, random = zip(*rates(PartSchedule(parts, 1.0, 10, warmup_epochs=2), 10), strict=True)
    plain = [(1 - e / 10) ** 0.9 for e in range(10)]
    warm = [1 / 3, 2 / 3, *[1.0] * 8]
    assert random == pytest.approx(
        [rate * factor for rate, factor in zip(plain, warm, strict=True)]
    )
    shifted = zip(plain[3:], warm, strict=False)
    assert encoder == pytest.approx([0, 0, 0, *(rate * factor for rate, factor in shifted)])


def test_a_frozen_group_does_not_move_and_keeps_its_gradient():
    frozen = optimizer(encoder={"frozen_epochs": 1})
    PartSchedule(frozen, 1.0, 10)
    (parameter,) = frozen.param_groups[0]["params"]
    (parameter * 3).backward()
    frozen.step()
    assert parameter.grad == 3
    assert parameter == 0


def test_sawtooth_warms_everything_up_twice():
    parts = optimizer(encoder={"frozen_epochs": 2}, random={})
    schedule = PartSchedule(parts, 1.0, 10, warmup_epochs=1, restart=2)
    encoder, random = zip(*rates(schedule, 10), strict=True)
    plain = [(1 - e / 10) ** 0.9 for e in range(10)]
    factors = [0.5, 1, 0.5, *[1.0] * 7]
    assert random == pytest.approx([r * f for r, f in zip(plain, factors, strict=True)])
    assert encoder == pytest.approx([0, 0, *random[2:]])


def test_stages_learn_the_more_slowly_the_nearer_they_are_to_the_image(make_unet):
    unet = make_unet(2, residual=True)
    groups = group_parameters(unet, asked_keys(unet, "trained"), 0.5, layer_decay=0.1)
    scales = {group["name"]: group["lr_scale"] for group in groups}
    assert scales == pytest.approx(
        {
            "encoder stage 0": 0.005,
            "encoder stage 1": 0.05,
            "encoder stage 2": 0.5,
            "decoder": 1,
            "random": 1,
        }
    )
    first = {id(p) for p in [*unet.encoder.stem.parameters(), *unet.encoder.stages[0].parameters()]}
    assert {id(p) for p in groups[0]["params"]} == first
    assert sum(len(g["params"]) for g in groups) == len(list(unet.parameters()))
    assert names(group_parameters(unet, [], layer_decay=0.1)) == ["random"]


def test_transferred_weights_decay_towards_their_start(make_unet):
    """One step equals a step on loss + decay / 2 |w - start|^2; what is random decays to zero."""
    network, plain = make_unet(2), make_unet(2)
    loaded = asked_keys(network, "encoder")
    start = copy_start(network, loaded)
    for each in (network, plain):
        with torch.no_grad():
            for parameter in each.parameters():
                parameter += 0.1
    groups = group_parameters(network, loaded, start_decay=0.3)
    ours = torch.optim.SGD(groups, 0.1, weight_decay=0.05, momentum=0.9, nesterov=True)
    pull_to_start(network, ours, start)
    theirs = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, nesterov=True)
    for _ in range(3):
        for each, optimiser in ((network, ours), (plain, theirs)):
            optimiser.zero_grad()
            torch.manual_seed(0)
            loss = sum(out.square().mean() for out in each(torch.rand(2, 1, 32, 32)))
            if each is plain:
                for name, parameter in plain.named_parameters():
                    origin, decay = (start[name], 0.3) if name in start else (0, 0.05)
                    loss = loss + decay / 2 * (parameter - origin).square().sum()
            loss.backward()
            optimiser.step()
    for a, b in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
