"""Codes of equal partition: a slow NumPy version, lightly's, closed forms, two processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from torch import Tensor

from nnssl.common.distributed import local_rows
from nnssl.losses import clustering
from nnssl.losses.clustering import (
    cluster_shares,
    linear_cross_entropy,
    map_cross_entropy,
    sinkhorn,
    swapped_prediction,
)


def random_scores(tokens: int = 24, prototypes: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, prototypes, generator=generator) * 2 - 1


def numpy_sinkhorn(scores: np.ndarray, weights: np.ndarray, epsilon: float, rounds: int):
    """The paper's appendix as written, prototypes in rows, with marginals of tokens."""
    share = weights / weights.sum()
    q = np.exp(scores.astype(np.float64) / epsilon).T * share
    q /= q.sum()
    for _ in range(rounds):
        for k in range(len(q)):
            q[k] *= 1 / len(q) / q[k].sum()
        for n in range(q.shape[1]):
            q[:, n] *= share[n] / q[:, n].sum()
    return (q / share).T


@pytest.mark.parametrize("rounds", [1, 3, 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_slow_version(rounds: int, weighted: bool) -> None:
    scores = random_scores()
    weights = torch.linspace(0.1, 3, len(scores)) if weighted else torch.ones(len(scores))
    expected = numpy_sinkhorn(scores.numpy(), weights.double().numpy(), 0.05, rounds)
    codes = sinkhorn(scores, iterations=rounds, weights=weights if weighted else None)
    np.testing.assert_allclose(codes.numpy(), expected, rtol=1e-3, atol=1e-5)


def test_equals_lightly() -> None:
    scores = random_scores(32, 7, 1)
    torch.testing.assert_close(sinkhorn(scores), lightly_sinkhorn(scores), rtol=1e-4, atol=1e-6)


def test_rows_sum_to_one_and_prototypes_are_used_equally() -> None:
    scores = random_scores(400, 8, 2) + torch.linspace(-1, 1, 8)  # one prototype is liked best
    codes = sinkhorn(scores, iterations=50)
    torch.testing.assert_close(codes.sum(1), torch.ones(400))
    torch.testing.assert_close(codes.mean(0), torch.full((8,), 1 / 8), rtol=1e-2, atol=0)
    assert scores.softmax(1).mean(0).max() > 0.17


def test_equal_scores_give_uniform_codes_and_one_token_too() -> None:
    torch.testing.assert_close(sinkhorn(torch.zeros(6, 4)), torch.full((6, 4), 0.25))
    torch.testing.assert_close(sinkhorn(random_scores(1, 4)), torch.full((1, 4), 0.25))


def test_clear_groups_get_hard_codes() -> None:
    scores = torch.eye(4).repeat_interleave(5, 0)
    codes = sinkhorn(scores)
    assert torch.equal(codes.argmax(1), torch.arange(4).repeat_interleave(5))
    assert codes.amax(1).min() > 0.99


def test_order_of_tokens_and_prototypes_does_not_matter() -> None:
    scores, rows, columns = random_scores(), torch.randperm(24), torch.randperm(5)
    torch.testing.assert_close(sinkhorn(scores)[rows], sinkhorn(scores[rows]))
    torch.testing.assert_close(sinkhorn(scores)[:, columns], sinkhorn(scores[:, columns]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_tiny_epsilon_are_finite(dtype: torch.dtype) -> None:
    scores = random_scores(3, 6).to(dtype)
    for epsilon in (0.05, 1e-3):
        codes = sinkhorn(scores, epsilon=epsilon)
        assert codes.dtype == torch.float32
        torch.testing.assert_close(codes.sum(1), torch.ones(3))
    torch.testing.assert_close(sinkhorn(scores), sinkhorn(scores.float()))


def test_tokens_without_weight_have_codes_and_no_say() -> None:
    scores = random_scores()
    weights = (torch.arange(24) < 16).float()
    codes = sinkhorn(scores, weights=weights)
    torch.testing.assert_close(codes[:16], sinkhorn(scores[:16]))
    torch.testing.assert_close(codes[16:].sum(1), torch.ones(8))
    assert sinkhorn(scores, weights=torch.zeros(24)).isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 4.0, 65536.0])
@pytest.mark.parametrize("kind", ["swapped", "map", "map, balanced", "linear", "linear, balanced"])
def test_nothing_counted_has_no_gradient_at_any_loss_scale(kind: str, scale: float) -> None:
    """0 / tiny is 0, but its gradient times the scale of float16 is inf * 0."""
    logits = random_scores().requires_grad_()
    if kind == "swapped":
        loss = swapped_prediction(logits, random_scores(seed=1).softmax(1), torch.zeros(24))
    else:
        unknown, balanced = torch.full((24, 1), -1), "balanced" in kind
        if kind.startswith("map"):
            loss = map_cross_entropy(logits[:, :, None], unknown, balanced)
        else:
            eye, bias = torch.eye(5), torch.zeros(5)
            loss = linear_cross_entropy(logits[:, :, None], eye, bias, unknown, balanced)
    (loss * scale).backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_weights_are_relative_however_small() -> None:
    logits, codes = random_scores(), random_scores(seed=1).softmax(1)
    weights = torch.linspace(0, 1, 24)
    small = swapped_prediction(logits, codes, weights / 1000)
    torch.testing.assert_close(small, swapped_prediction(logits, codes, weights))


def test_a_memory_bank_takes_part_in_the_balance() -> None:
    scores = random_scores()
    codes = sinkhorn(scores[:4], shared_scores=scores[4:])
    torch.testing.assert_close(codes, sinkhorn(scores)[:4])
    assert not torch.allclose(codes, sinkhorn(scores[:4]), atol=0.05)
    weights = torch.linspace(0.2, 1, 24)
    codes = sinkhorn(
        scores[:4], weights=weights[:4], shared_scores=scores[4:], shared_weights=weights[4:]
    )
    torch.testing.assert_close(codes, sinkhorn(scores, weights=weights)[:4])


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match=r"weights: found shape \(3,\)"):
        sinkhorn(random_scores(), weights=torch.ones(3))
    with pytest.raises(ValueError, match=r"scores: found shape \(24, 1\)"):
        sinkhorn(random_scores(prototypes=1))


# ---------------------------------------------------------------- swapped prediction


def test_swapped_prediction_is_the_paper_s_sum() -> None:
    logits, codes = random_scores(seed=3), sinkhorn(random_scores(seed=4))
    weights = torch.linspace(0, 2, 24)
    expected = 0.0
    for n in range(24):
        probability = np.exp(logits[n].numpy()) / np.exp(logits[n].numpy()).sum()
        expected -= float(weights[n]) * float((codes[n].numpy() * np.log(probability)).sum())
    loss = swapped_prediction(logits, codes, weights)
    assert float(loss) == pytest.approx(expected / float(weights.sum()), rel=1e-5)
    assert float(swapped_prediction(torch.zeros(9, 5), codes[:9])) == pytest.approx(math.log(5))
    assert float(swapped_prediction(logits, codes, torch.zeros(24))) == 0


def test_codes_get_no_gradient_and_shapes_must_fit() -> None:
    logits, codes = random_scores().requires_grad_(), random_scores(seed=1).requires_grad_()
    swapped_prediction(logits, codes).backward()
    assert logits.grad is not None
    assert codes.grad is None
    with pytest.raises(ValueError, match="codes: found shape"):
        swapped_prediction(logits, codes[:3])


def _half(rank: int, scores: Tensor, weights: Tensor) -> dict[str, Tensor]:
    rows = slice(*local_rows(12))
    mine = scores[rows].clone().requires_grad_()
    codes = sinkhorn(mine, weights=weights[rows], shared_scores=scores[:5])
    loss = swapped_prediction(mine / 0.1, codes.flip(0), weights[rows])
    loss.backward()
    maps = scores.argmax(1).reshape(2, 12)[rank][None]
    balanced = map_cross_entropy(mine.T[None], maps, balanced=True)
    return {"codes": codes, "loss": loss.detach(), "gradient": mine.grad, "maps": balanced.detach()}


def test_two_processes_equal_one(two_processes: Callable[..., list[Any]]) -> None:
    scores, weights = random_scores(), torch.linspace(0.1, 2, 24)
    whole = scores.clone().requires_grad_()
    codes = sinkhorn(whole, weights=weights, shared_scores=scores[:5])
    flipped = codes.reshape(2, 12, -1).flip(1).reshape(24, -1)
    loss = swapped_prediction(whole / 0.1, flipped, weights)
    loss.backward()
    halves = two_processes(_half, scores, weights)
    torch.testing.assert_close(torch.cat([h["codes"] for h in halves]), codes)
    assert float(sum(h["loss"] for h in halves)) / 2 == pytest.approx(float(loss.detach()))
    gradient = torch.cat([h["gradient"] for h in halves]) / 2
    torch.testing.assert_close(gradient, whole.grad)
    both = map_cross_entropy(scores.reshape(2, 12, 5).mT, scores.argmax(1).reshape(2, 12), True)
    assert float(sum(h["maps"] for h in halves)) / 2 == pytest.approx(float(both), rel=1e-5)


# ---------------------------------------------------------------- integer maps


def test_map_cross_entropy_ignores_what_is_unknown() -> None:
    logits, target = torch.randn(2, 4, 3, 5), torch.randint(0, 4, (2, 3, 5))
    target[0, 1] = -1
    known = target >= 0
    rows = logits.movedim(1, -1)[known].log_softmax(1)
    expected = -rows.gather(1, target[known][:, None]).mean()
    torch.testing.assert_close(map_cross_entropy(logits, target), expected)
    assert float(map_cross_entropy(logits, torch.full_like(target, -1))) == 0
    assert float(map_cross_entropy(logits * 0, target)) == pytest.approx(math.log(4))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("size", [(7, 5), (3, 4, 5)])
def test_linear_cross_entropy_is_that_of_its_logits(
    size: tuple[int, ...], balanced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradients, over parts that do not divide the voxels."""
    monkeypatch.setitem(clustering.VOXELS_AT_ONCE, "cpu", 16)
    torch.manual_seed(0)
    features = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(-1, 4, (2, *size))
    linear = torch.einsum("kf,bf...->bk...", weight, features) + bias.view(-1, *[1] * len(size))
    known, terms = target >= 0, -linear.log_softmax(1).gather(1, target.clamp_min(0)[:, None])[:, 0]
    counts = torch.bincount(target[known], minlength=4)
    weights = known / counts[target.clamp_min(0)] if balanced else known.double()
    expected = (weights * terms).sum() / weights.sum()
    inputs = features, weight, bias
    wanted = torch.autograd.grad(3 * expected, inputs)
    found = linear_cross_entropy(*inputs, target, balanced)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)  # weights are float32
    torch.testing.assert_close(torch.autograd.grad(3 * found, inputs), wanted, rtol=1e-5, atol=1e-9)


def test_linear_cross_entropy_keeps_small_gradients_of_half_precision() -> None:
    """The loss scale comes after the gradient is made: in float16 1e-8 would be lost before."""
    features = torch.randn(1, 3, 4000, requires_grad=True)
    weight, bias = 1e-3 * torch.randn(5, 3), torch.zeros(5)
    target = torch.randint(0, 5, (1, 4000))
    linear_cross_entropy(features, weight, bias, target).backward()
    half = features.detach().half().requires_grad_()
    (2**16 * linear_cross_entropy(half, weight, bias, target)).backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.float16
    torch.testing.assert_close(half.grad.float() / 2**16, features.grad, rtol=2e-2, atol=1e-10)


def test_balanced_clusters_have_equal_shares_of_the_loss() -> None:
    """90 voxels of cluster 0 cost a each, 10 of cluster 1 cost b each: the mean is (a + b) / 2."""
    target = torch.tensor([0] * 90 + [1] * 10 + [-1] * 7)[None]
    logits = torch.tensor([2.0, 0.0, -1.0])[None, :, None].expand(1, 3, 107)
    a, b, _ = (-logits[0, :, 0].log_softmax(0)).tolist()
    balanced = map_cross_entropy(logits, target, balanced=True)
    assert float(balanced) == pytest.approx((a + b) / 2, rel=1e-5)
    assert float(map_cross_entropy(logits, target)) == pytest.approx(0.9 * a + 0.1 * b, rel=1e-5)
    assert cluster_shares(target, 3).tolist() == pytest.approx([0.9, 0.1, 0])


def test_shares_of_clusters_count_and_weigh_and_leave_out_what_is_unknown() -> None:
    clusters = torch.tensor([[0, 0, 0], [2, -1, -1]])
    assert cluster_shares(clusters, 4).tolist() == pytest.approx([0.75, 0, 0.25, 0])
    weights = torch.tensor([[1.0, 0, 0], [3, 9, 9]])
    assert cluster_shares(clusters, 4, weights).tolist() == pytest.approx([0.25, 0, 0.75, 0])
