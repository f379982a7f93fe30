"""Gathering in one process and in two gloo processes."""

from __future__ import annotations

import torch

from nnssl.common import distributed


def test_one_process_needs_no_group():
    x = torch.randn(3, 2, requires_grad=True)
    assert not distributed.is_distributed()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.local_rows(3) == (0, 3)
    assert torch.equal(distributed.all_gather(x), x)
    distributed.all_gather(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(3, 2))
    assert not distributed.all_gather_no_grad(x).requires_grad
    mean = distributed.all_reduce_mean(x)
    assert torch.equal(mean, x)
    assert not mean.requires_grad


def _input(rank):
    return torch.arange(6.0).reshape(3, 2) + 10 * rank


def _one_rank(rank):
    """Rank r weighs the gathered rows by (r + 1) * (0, 1, 2, ...)."""
    x = _input(rank).T.contiguous().T.requires_grad_()  # not contiguous
    gathered = distributed.all_gather(x)
    weights = (rank + 1) * torch.arange(6.0)[:, None]
    (weights * gathered).sum().backward()
    scalar = torch.tensor(float(rank))
    return {
        "who": (distributed.rank(), distributed.world_size(), distributed.is_distributed()),
        "rows": distributed.local_rows(3),
        "gathered": gathered.detach(),
        "gradient": x.grad,
        "integers": distributed.all_gather_no_grad(torch.tensor([rank, 7])),
        "truth": distributed.all_gather_no_grad(torch.tensor([rank == 0])),
        "detached": not distributed.all_gather_no_grad(x).requires_grad,
        "mean": distributed.all_reduce_mean(scalar),
        "unchanged": scalar,
    }


def test_two_processes(two_processes):
    """Row k gets weight k from rank 0 and 2 k from rank 1: its gradient is 3 k."""
    for rank, found in enumerate(two_processes(_one_rank)):
        assert found["who"] == (rank, 2, True)
        assert found["rows"] == (3 * rank, 3 * rank + 3)
        assert torch.equal(found["gathered"], torch.cat((_input(0), _input(1))))
        expected = 3 * torch.arange(3 * rank, 3 * rank + 3.0)[:, None].expand(3, 2)
        assert torch.equal(found["gradient"], expected)
        assert found["integers"].tolist() == [0, 7, 1, 7]
        assert found["truth"].tolist() == [True, False]
        assert found["detached"]
        assert float(found["mean"]) == 0.5
        assert float(found["unchanged"]) == rank
