"""The contrastive loss against slow loops, printed values, lightly, and two processes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnssl.common.distributed import all_gather, all_gather_no_grad, local_rows
from nnssl.losses.contrastive import NoSignalError, contrastive_loss, find_pairs


def _slow_loss(z, positive, negative, temperature):
    """`sum w_ap * -log(e^s_ap / (e^s_ap + sum_n e^s_an)) / sum w_ap`, pair by pair, float64."""
    z = np.asarray(z, dtype=np.float64)

    def exponential(a, b):
        cosine = z[a] @ z[b] / (np.linalg.norm(z[a]) * np.linalg.norm(z[b]))
        return np.exp(cosine / temperature)

    total, weights = 0.0, 0.0
    for a in range(len(z)):
        for p in range(len(z)):
            if positive[a, p]:
                negatives = sum(exponential(a, n) for n in range(len(z)) if negative[a, n])
                share = exponential(a, p) / (exponential(a, p) + negatives)
                total -= float(positive[a, p]) * np.log(share)
                weights += float(positive[a, p])
    return total / weights


def _numbers(volumes=3, parts=4, views=3, datasets=1):
    """Instance, part and dataset of a batch in PDM's order: part fastest, then dataset."""
    index = torch.arange(volumes * datasets * parts).repeat(views)
    return index, index % parts, index // parts % datasets


def _random(count, features=8, seed=0):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def _random_masks(count=10, seed=3):
    random = np.random.default_rng(seed)
    kind = random.integers(0, 3, (count, count))
    weights = torch.tensor(random.uniform(0.5, 2, (count, count)), dtype=torch.float32)
    positive = weights * torch.tensor(kind == 1)
    return positive.fill_diagonal_(0), torch.tensor(kind == 2).fill_diagonal_(False)


def _across(*numbers, **options):
    return find_pairs("partitions_across", *numbers, **options)


def _minus(*numbers, **options):
    return find_pairs("partitions", *numbers, **options)


BUILDERS = {
    "G^R": lambda *n: find_pairs("instances", *n),
    "G^D-": _minus,
    "G^D": _across,
    "G^D, datasets differ": lambda *n: _across(*n, dataset_similar=False),
    "G^D, within": lambda *n: _across(*n, within_dataset=True),
}


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_slow_loops(builder, temperature):
    positive, negative = BUILDERS[builder](*_numbers(volumes=2, parts=3, views=2, datasets=2))
    z = _random(len(positive))
    expected = _slow_loss(z, positive, negative, temperature)
    assert float(contrastive_loss(z, positive, negative, temperature)) == pytest.approx(
        expected, rel=1e-5
    )


def test_weights_equal_slow_loops():
    positive, negative = _random_masks()
    z = _random(10)
    found = contrastive_loss(z, positive, negative, 0.2)
    assert float(found) == pytest.approx(_slow_loss(z, positive, negative, 0.2), rel=1e-5)


def test_gradient_is_that_of_the_formula():
    positive, negative = (mask.double() for mask in _random_masks(6))
    z = _random(6, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: contrastive_loss(x, positive, negative.bool(), 0.3), (z,)
    )


def test_a_second_positive_is_not_in_the_denominator():
    """z = e1, e1, e2, -e1, temperature 1, N_0 = {3}: the terms are ln(1 + e^-2) and ln(1 + e^-1).

    With the second positive in the denominator they would be larger.
    """
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    positive, negative = torch.zeros(4, 4), torch.zeros(4, 4, dtype=torch.bool)
    positive[0, 1] = positive[0, 2] = 1
    negative[0, 3] = True
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    assert float(contrastive_loss(z, positive, negative, 1.0)) == pytest.approx(expected)


def test_closed_form_two_directions():
    """z = e1, e1, e2, N_0 = {2}: -log(e^(1/t) / (e^(1/t) + 1)) = ln(1 + e^(-1/t))."""
    z = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    positive, negative = torch.zeros(3, 3), torch.zeros(3, 3, dtype=torch.bool)
    positive[0, 1], negative[0, 2] = 1.0, True
    found = contrastive_loss(z, positive, negative, 0.5)
    assert float(found) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-6)


# Printed values of methods.md 2.5: all embeddings identical, every term = ln(1 + |N|).


def _pair_weights(count, symmetric_pairs):
    """Number of terms (a, p), from a list of symmetric pairs."""
    weights = torch.zeros(count, count)
    for a, p in symmetric_pairs:
        weights[a, p] += 1
        weights[p, a] += 1
    return weights


def _collapsed(positive, negative, temperature, images=None):
    """The loss of equal embeddings; divided by so many images, as published, or by the pairs."""
    mean = float(contrastive_loss(torch.ones(len(positive), 5), positive, negative, temperature))
    return mean if images is None else mean * float(positive.sum()) / images


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_printed_value_of_g_r(temperature):
    """12 slices x 2 views: 22 negatives and one positive: ln 23."""
    index, part, dataset = _numbers(volumes=3, parts=4, views=2)
    masks = BUILDERS["G^R"](index, part, dataset)
    assert _collapsed(*masks, temperature) == pytest.approx(3.1355, abs=5e-5)


def test_printed_value_of_g_d_minus():
    """B = 12, S = 4, 36 images: 72 terms ln 28 over 3B = 36 images: 2 ln 28; by terms: ln 28."""
    masks = _minus(*_numbers(volumes=3, parts=4, views=3))
    assert _collapsed(*masks, 0.1, images=36) == pytest.approx(6.6644, abs=5e-5)
    assert _collapsed(*masks, 0.1) == pytest.approx(math.log(28), rel=1e-6)


def _chaitanya_pairs(count, parts):
    for i1 in (i for i in range(count) if i % (2 * parts) < parts):
        i2, i3, i4 = ((i1 + step * parts) % count for step in (1, 2, 3))
        yield from ((i1, i2), (i1, i3), (i3, i4), (i2, i4))


def test_printed_value_of_g_d():
    """48 images in groups [X, X', Y, Y'] of 16: 192 terms ln 37 over 48 images: 4 ln 37.

    The published list has fewer positives than the masks of `partitions_across`, whose
    negatives are the same: every image of another part; by terms both give ln 37.
    """
    part = torch.arange(48) % 4
    instance = torch.arange(48) // 8 * 4 + part
    positive, negative = _across(instance, part, torch.zeros_like(part))
    weights = _pair_weights(48, _chaitanya_pairs(48, 4))
    assert not ((weights > 0) & (positive == 0)).any()
    assert _collapsed(weights, negative, 0.1, images=48) == pytest.approx(14.4437, abs=5e-5)
    assert _collapsed(positive, negative, 0.1) == pytest.approx(math.log(37), rel=1e-6)


def _pdm_pairs(originals, offset):
    """PDM's index pairs: view 0, 1, 2 of i, and of the image `offset` further, modulo all."""
    for i in range(originals):
        one, two, five = (i + view * originals for view in range(3))
        three, four, six = ((index + offset) % (3 * originals) for index in (one, two, five))
        yield from ((one, two), (three, four), (one, three), (two, four))
        yield from ((five, six), (two, five), (four, six))


def _pdm_bugged(negative, parts, datasets):
    """PDM's exclusion begins at (i mod P*D): earlier datasets' originals of volume 0 stay."""
    negative = negative.clone()
    for i in range(len(negative)):
        negative[i, range(i % parts, i % (parts * datasets), parts)] = True
    return negative


@pytest.mark.parametrize(
    ("datasets", "volumes", "similar", "bug", "value_minus", "value"),
    [
        (1, 12, True, False, 14.0740, 10.9465),
        (3, 4, True, False, 14.0740, 10.9465),
        (3, 4, True, True, 14.1014, 10.9677),
        (3, 4, False, False, 14.6710, 11.4108),
        (4, 3, True, True, 14.1149, 10.9783),
        (4, 3, False, False, 14.7380, 11.4628),
    ],
)
def test_printed_values_of_pdm(datasets, volumes, similar, bug, value_minus, value):
    """D-: 3 pairs, over 2 bs (the masks as they are); D: 7 pairs, over 2 * 3 * bs; bs = 48.

    Printed with four decimals, the last value cut: 14/6 ln 136 = 11.46286.
    """
    numbers = _numbers(volumes, 4, 3, datasets)
    positive, negative = _minus(*numbers, dataset_similar=similar)
    across, same_negative = _across(*numbers, dataset_similar=similar)
    assert torch.equal(negative, same_negative)
    weights = _pair_weights(144, _pdm_pairs(48, 4 * datasets))
    assert not ((weights > 0) & (across == 0)).any()
    negative = _pdm_bugged(negative, 4, datasets) if bug else negative
    assert _collapsed(positive, negative, 1.0, 96) == pytest.approx(value_minus, abs=1e-4)
    assert _collapsed(weights, negative, 1.0, 288) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("parts", [2, 3, 5, 7])
def test_collapse_value_for_any_number_of_parts(parts):
    """3 volumes x S parts x 2 views: |N| = 6 (S - 1), so ln(1 + 6 (S - 1))."""
    masks = _across(*_numbers(volumes=3, parts=parts, views=2))
    assert _collapsed(*masks, 0.1) == pytest.approx(math.log(1 + 6 * (parts - 1)), rel=1e-6)


# Invariances and other implementations.


def test_length_of_embeddings_does_not_count():
    positive, negative = _random_masks()
    z, lengths = _random(10), torch.rand(10, 1) * 100 + 0.01
    scaled = contrastive_loss(z * lengths, positive, negative, 0.1)
    torch.testing.assert_close(scaled, contrastive_loss(z, positive, negative, 0.1))


def test_order_of_embeddings_does_not_count():
    positive, negative = _random_masks()
    z, order = _random(10), torch.randperm(10, generator=torch.Generator().manual_seed(5))
    shuffled = contrastive_loss(z[order], positive[order][:, order], negative[order][:, order], 0.1)
    torch.testing.assert_close(shuffled, contrastive_loss(z, positive, negative, 0.1))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_g_r_equals_lightly(temperature):
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed").NTXentLoss
    a, b = _random(9, seed=1), _random(9, seed=2)
    index = torch.arange(9).repeat(2)
    masks = find_pairs("instances", index, index, torch.zeros_like(index))
    found = contrastive_loss(torch.cat((a, b)), *masks, temperature)
    torch.testing.assert_close(found, loss(temperature=temperature)(a, b))


def test_closer_positives_lower_the_loss():
    positive, negative = _minus(*_numbers(views=2))
    z = _random(24)
    closer = z + 2 * z.roll(12, 0)
    assert contrastive_loss(closer, positive, negative, 0.1) < contrastive_loss(
        z, positive, negative, 0.1
    )


# Numbers that are hard to represent.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_stable(dtype):
    masks = _across(*_numbers())
    z = (_random(36) * 3000).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(z, *masks, 0.05)
    loss.backward()
    assert loss.dtype == torch.float32
    expected = contrastive_loss(z.detach().double(), *masks, 0.05)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert z.grad.isfinite().all()


def test_extreme_similarities_stay_finite():
    """Opposite positive, equal negative, temperature t: ln(1 + e^(2/t)) = 2/t for small t."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    positive, negative = torch.zeros(3, 3), torch.zeros(3, 3, dtype=torch.bool)
    positive[0, 1], negative[0, 2] = 1.0, True
    loss = contrastive_loss(z, positive, negative, 0.001)
    loss.backward()
    assert loss.item() == pytest.approx(2000.0, rel=1e-5)
    assert z.grad.isfinite().all()


def test_a_zero_embedding_has_finite_loss_and_gradient():
    z = _random(36)
    z[3] = 0.0
    z.requires_grad_()
    loss = contrastive_loss(z, *_minus(*_numbers()), 0.1)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


def test_a_nan_is_not_hidden():
    z = _random(36)
    z[3] = torch.nan
    assert contrastive_loss(z, *_minus(*_numbers()), 0.1).isnan()


# Anchors without positives or negatives.


def test_an_anchor_without_positives_adds_nothing():
    positive, negative = _random_masks()
    positive[4] = 0
    z = _random(10)
    expected = _slow_loss(z, positive, negative, 0.1)
    assert float(contrastive_loss(z, positive, negative, 0.1)) == pytest.approx(expected, rel=1e-5)
    negative[4] = ~negative[4]
    assert float(contrastive_loss(z, positive, negative, 0.1)) == pytest.approx(expected, rel=1e-5)


def test_an_anchor_without_negatives_gives_zero():
    """Only anchor 4 has a negative, and it is not near any of the others."""
    positive, negative = torch.ones(5, 5).fill_diagonal_(0), torch.zeros(5, 5, dtype=torch.bool)
    positive[4], positive[:, 4], positive[4, 0], negative[4, 1] = 0, 0, 1, True
    z = _random(5).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        loss = contrastive_loss(z, positive, negative, 0.1)
        loss.backward()
    expected = _slow_loss(z.detach(), positive, negative, 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert not z.grad[2:4].any()


def test_nothing_to_contrast_with_is_an_error_not_a_loss_of_zero():
    """One image, images of one part, and a negative only of an anchor without positive."""
    z, one = _random(4), torch.zeros(2, dtype=torch.long)
    with pytest.raises(NoSignalError, match="negative: found none among 2 embeddings"):
        contrastive_loss(z[:2], *find_pairs("instances", one, one, one), 0.1)
    part, index = torch.zeros(4, dtype=torch.long), torch.tensor([0, 1, 0, 1])
    with pytest.raises(NoSignalError, match="negative: found none among 4 embeddings"):
        contrastive_loss(z, *_minus(index, part, part), 0.1)
    positive, negative = torch.zeros(4, 4), torch.zeros(4, 4, dtype=torch.bool)
    positive[0, 1], negative[2, 3] = 1, True
    with pytest.raises(NoSignalError, match="negative"):
        contrastive_loss(z, positive, negative, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive": torch.zeros(10, 10)}, "no positive pair among 10 embeddings"),
        ({"positive": torch.zeros(10, 9)}, r"positive: found shape \(10, 9\), allowed: \(10, 10\)"),
        ({"negative": torch.zeros(9, 9)}, r"negative: found shape \(9, 9\)"),
        ({"negative": torch.zeros(10, 10)}, r"negative: found dtype torch.float32"),
        ({"embeddings": torch.zeros(10)}, r"embeddings: found shape \(10,\), allowed: \(N, D\)"),
        ({"rows": (4, 11)}, r"rows: found \(4, 11\), allowed: 0 <= begin < end <= 10"),
        ({"rows": (4, 4)}, "rows"),
    ],
)
def test_bad_arguments_are_named(change, message):
    positive, negative = _random_masks()
    good = {
        "embeddings": _random(10),
        "positive": positive,
        "negative": negative,
        "temperature": 0.1,
    }
    with pytest.raises(ValueError, match=message):
        contrastive_loss(**(good | change))


# Several processes.


def test_mean_over_equal_rows_is_the_whole():
    z, (positive, negative) = _random(10), _random_masks()
    whole = contrastive_loss(z, positive, negative, 0.1)
    parts = [contrastive_loss(z, positive, negative, 0.1, rows) for rows in ((0, 5), (5, 10))]
    assert not torch.allclose(*parts)
    torch.testing.assert_close(sum(parts) / 2, whole)


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(), nn.Linear(8, 4))


def _problem():
    """Two ranks' worth of images; views side by side on one rank, volumes spread over both."""
    instance = torch.arange(8).repeat(2, 1).T.reshape(-1)  # 0 0 1 1 ... 7 7
    return _random(16, 6, seed=9), instance, instance % 3


def _one_rank(rank, count):
    images, instance, part = (x[rank * count : (rank + 1) * count] for x in _problem())
    model = DistributedDataParallel(_model())
    embeddings = all_gather(model(images))
    instance, part = all_gather_no_grad(instance), all_gather_no_grad(part)
    masks = _across(instance, part, torch.zeros_like(part))
    loss = contrastive_loss(embeddings, *masks, 0.2, rows=local_rows(count))
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def test_two_processes_equal_one(two_processes):
    (loss_0, gradients_0), (loss_1, gradients_1) = two_processes(_one_rank, 8)
    images, instance, part = _problem()
    model = _model()
    masks = _across(instance, part, torch.zeros_like(part))
    loss = contrastive_loss(model(images), *masks, 0.2)
    loss.backward()
    assert loss_0 != loss_1
    torch.testing.assert_close((loss_0 + loss_1) / 2, loss.detach())
    for found, other, parameter in zip(gradients_0, gradients_1, model.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad)
        torch.testing.assert_close(other, parameter.grad)
