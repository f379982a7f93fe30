"""A frozen encoder has no backward pass; released, it moves as if it had never been frozen."""

from __future__ import annotations

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnssl.finetuning.freezing import freeze_or_release
from nnssl.finetuning.learning_rates import PartSchedule, group_parameters
from nnssl.finetuning.weights import asked_keys
from nnssl.modules import unet


def make_optimizer(network, frozen_epochs, part="encoder", stages=None):
    groups = group_parameters(network, asked_keys(network, part, stages), 1, 1, 1, frozen_epochs)
    return torch.optim.SGD(groups, 0.1, momentum=0.99, nesterov=True, weight_decay=0.01)


def loss_of(network):
    torch.manual_seed(0)
    return sum(output.square().mean() for output in network(torch.rand(2, 1, 32, 32)))


def encoder_of(network):
    return torch.cat([p.detach().flatten() for p in network.encoder.parameters()])


@pytest.fixture(params=["plain", "residual"])
def network(request, make_unet):
    return make_unet(2, residual=request.param == "residual")


def test_outputs_and_the_decoders_gradient_stay_and_the_encoder_has_none(network):
    optimizer = make_optimizer(network, 2)
    loss_of(network).backward()
    free = {name: p.grad.clone() for name, p in network.named_parameters()}
    expected = float(loss_of(network).detach())
    optimizer.zero_grad()
    freeze_or_release(network, optimizer, 0, False)
    keys = list(network.state_dict())
    loss = loss_of(network)
    loss.backward()
    assert float(loss.detach()) == expected
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad
        if name.startswith("encoder."):
            assert not parameter.grad.any()
        else:
            assert torch.equal(parameter.grad, free[name])
    freeze_or_release(network, optimizer, 2, False)
    optimizer.zero_grad()
    loss_of(network).backward()
    assert all(torch.equal(p.grad, free[name]) for name, p in network.named_parameters())
    assert list(network.state_dict()) == keys


def test_no_backward_pass_runs_through_what_is_frozen(network):
    optimizer, visited = make_optimizer(network, 1), []
    first = unet.encoder_parts(network)[0]
    convolution = next(m for m in first.modules() if isinstance(m, nn.Conv2d))
    convolution.register_full_backward_hook(lambda *_: visited.append(1))
    freeze_or_release(network, optimizer, 0, False)
    loss_of(network).backward()
    assert not visited
    freeze_or_release(network, optimizer, 1, False)
    loss_of(network).backward()
    assert visited


def test_the_first_step_after_the_release_is_as_long_as_without_freezing(make_unet):
    """Momentum that piles up at rate 0, of gradients or of the weight decay, would move it on."""
    moved = []
    for frozen in (0, 1):
        network = make_unet(2)
        optimizer = make_optimizer(network, frozen)
        del optimizer.param_groups[1]  # the decoder stays where it is
        schedule = PartSchedule(optimizer, 0.1, 100)
        for epoch in range(frozen + 1):
            schedule.step(epoch)
            freeze_or_release(network, optimizer, epoch, False)
            before = encoder_of(network)
            for _ in range(1 if epoch == frozen else 8):
                optimizer.zero_grad()
                loss_of(network).backward()
                optimizer.step()
        rate = optimizer.param_groups[0]["lr"]
        moved.append((encoder_of(network) - before) / rate)
    assert moved[0].norm() > 0.01
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-3, atol=1e-5)


def test_a_run_resumed_inside_the_epoch_of_the_release_keeps_its_momentum(network):
    optimizer = make_optimizer(network, 1)
    PartSchedule(optimizer, 0.1, 10).step(1)
    freeze_or_release(network, optimizer, 1, False)
    loss_of(network).backward()
    optimizer.step()
    kept = len(optimizer.state)
    freeze_or_release(network, optimizer, 1, True)
    assert len(optimizer.state) == kept == len(list(network.parameters()))
    freeze_or_release(network, optimizer, 1, False)
    assert len(optimizer.state) == kept - len(list(network.encoder.parameters()))
    freeze_or_release(network, optimizer, 2, False)
    assert len(optimizer.state) == kept - len(list(network.encoder.parameters()))


def test_random_stages_behind_the_frozen_ones_are_trained(network):
    """`weights.stages: 2` transfers the first stages only; the others start at random."""
    optimizer = make_optimizer(network, 1, stages=2)
    freeze_or_release(network, optimizer, 0, False)
    loss_of(network).backward()
    for number, stage in enumerate(network.encoder.stages):
        assert any(p.grad.any() for p in stage.parameters()) == (number >= 2)


def test_distributed_training_accepts_a_frozen_encoder(make_unet, tmp_path):
    """A parameter without gradient would stop the second step."""
    dist.init_process_group("gloo", f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        network = make_unet(2)
        optimizer, wrapped = make_optimizer(network, 1), DistributedDataParallel(network)
        for epoch in (0, 0, 1, 1):
            freeze_or_release(network, optimizer, epoch, False)
            optimizer.zero_grad()
            loss_of(wrapped).backward()
            assert any(p.grad.any() for p in network.encoder.parameters()) == (epoch == 1)
    finally:
        dist.destroy_process_group()


def test_a_frozen_resnet_keeps_its_statistics_until_it_is_released(make_resnet):
    """Its norms would follow the batches at rate 0 too."""
    network = make_resnet()
    optimizer, images = make_optimizer(network, 1), torch.rand(2, 1, 64, 64)
    start = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train()
    freeze_or_release(network, optimizer, 0, False)
    loss = sum(output.square().mean() for output in network(images))
    loss.backward()
    for name, parameter in network.named_parameters():
        assert bool(parameter.grad.any()) == name.startswith("decoder."), name
    assert all(torch.equal(buffer, start[name]) for name, buffer in network.named_buffers())
    network.train()
    freeze_or_release(network, optimizer, 1, False)
    network(images)
    assert not any(torch.equal(buffer, start[name]) for name, buffer in network.named_buffers())
