"""Local contrast against slow loops, printed values and the single anchor of the global loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nnssl.losses.contrastive import contrastive_loss, find_pairs
from nnssl.losses.local_contrastive import local_contrastive_loss
from nnssl.modules.regions import find_neighbours, place_anchors

TABLE = torch.from_numpy(find_neighbours(place_anchors(2, True), 5))


def _embeddings(maps, seed=0, regions=13):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(maps, regions, 6, generator=generator)


def _instances(images, views=2):
    index = torch.arange(images).repeat(views)
    return find_pairs("instances", index, torch.zeros_like(index), torch.zeros_like(index))[0]


def _slow(z, pairs, table, temperature, valid):
    """Term by term, float64: the loss, and the share of right terms."""
    z = z.double().numpy()
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    total = weight = right = 0.0
    for p in range(len(z)):
        for q in range(len(z)):
            for r in range(z.shape[1]):
                if not (pairs[p, q] and valid[p, r] and valid[q, r]):
                    continue
                near = [(m, int(n)) for m in (p, q) for n in table[r] if valid[m, n]]
                negatives = [z[p, r] @ z[m, n] / temperature for m, n in near]
                positive = z[p, r] @ z[q, r] / temperature
                share = np.exp(positive) / (np.exp(positive) + np.exp(negatives).sum())
                w = float(pairs[p, q])
                total, weight = total - w * np.log(share), weight + w
                right += w * all(positive > n for n in negatives)
    return total / weight, right / weight


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("shown", [1.0, 0.7])
def test_equals_the_slow_version(temperature, shown):
    z, pairs = _embeddings(6), _instances(3)
    pairs[0, 1] = 0.5
    valid = torch.rand(6, 13, generator=torch.Generator().manual_seed(1)) < shown
    found = local_contrastive_loss(z, pairs, TABLE, temperature, valid)
    expected = _slow(z, pairs, TABLE, temperature, valid)
    assert [float(x) for x in found] == pytest.approx(expected, rel=1e-5)


def test_lr_of_equal_embeddings_is_ln_11():
    """10 slices, two views, both directions, 13 regions, 5 neighbours in each of two maps."""
    loss, right = local_contrastive_loss(torch.ones(20, 13, 8), _instances(10), TABLE, 0.1)
    assert float(loss) == pytest.approx(math.log(11), rel=1e-6)
    assert float(right) == 0


def test_ld_of_equal_embeddings_is_one_and_a_half_ln_9():
    """12 anchors with 3 positives and 4 neighbours, over 24 maps: by terms ln 9."""
    index = torch.arange(12)
    pairs = torch.zeros(24, 24)
    pairs[index, index + 12] = pairs[index, (index + 4) % 12] = pairs[index, (index + 8) % 12] = 1
    loss, _ = local_contrastive_loss(torch.ones(24, 13, 8), pairs, TABLE[:, :4], 0.1)
    assert float(loss) == pytest.approx(math.log(9), rel=1e-6)
    assert float(loss) * float(pairs.sum()) / 24 == pytest.approx(3.2958, abs=5e-5)


def test_one_region_is_the_global_loss():
    """Two maps of two regions, each the other's neighbour: four images, ordinary contrast."""
    z, table = _embeddings(2, regions=2), torch.tensor([[1], [0]])
    loss, _ = local_contrastive_loss(z, _instances(1), table, 0.5)
    positive = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]).float()
    negative = ~(positive.bool() | torch.eye(4, dtype=torch.bool))
    expected = contrastive_loss(z.flatten(0, 1), positive, negative, 0.5)
    torch.testing.assert_close(loss, expected)


def test_order_and_length_do_not_matter():
    z, pairs = _embeddings(6), _instances(3)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    before = local_contrastive_loss(z, pairs, TABLE, 0.1)
    after = local_contrastive_loss(7 * z[order], pairs[order][:, order], TABLE, 0.1)
    torch.testing.assert_close(before, after)


def test_parts_of_the_rows_make_the_whole():
    z, pairs = _embeddings(6), _instances(3)
    whole = torch.stack(local_contrastive_loss(z, pairs, TABLE, 0.1))
    parts = [torch.stack(local_contrastive_loss(z, pairs, TABLE, 0.1, rows=r))
             for r in ((0, 3), (3, 6))]  # fmt: skip
    torch.testing.assert_close(torch.stack(parts).mean(0), whole)


def test_nothing_in_common_costs_nothing():
    z = _embeddings(2).requires_grad_()
    loss, _ = local_contrastive_loss(z, _instances(1), TABLE, 0.1, torch.zeros(2, 13).bool())
    loss.backward()
    assert float(loss.detach()) == 0
    assert not z.grad.any()


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"found \(4, 4\), \(13, 5\), allowed: \(6, 6\) and 13"):
        local_contrastive_loss(_embeddings(6), torch.ones(4, 4), TABLE, 0.1)
