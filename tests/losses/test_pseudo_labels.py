"""Pseudo-labels and consistency against slow NumPy versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nnssl.losses import pseudo_labels
from nnssl.losses.pseudo_labels import count_values, make_pseudo_labels, squared_difference


def draw_logits(shape=(2, 4, 20, 20), scale=3.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_counted_voxels_are_sure_or_among_the_surest_of_their_class(share):
    logits = draw_logits()
    logits[:, 2] -= 2  # a class of which the teacher is rarely sure
    said = make_pseudo_labels(logits, False, 0.95, share)
    e = np.exp(logits.numpy() - logits.numpy().max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    sure, classes = p.max(1), p.argmax(1)
    assert np.array_equal(said.labels[:, 0].numpy(), classes)
    assert said.probabilities.numpy() == pytest.approx(p, abs=1e-6)
    for c in range(4):
        mine = sure[classes == c]
        cut = min(
            0.95,
            np.floor(np.sort(mine)[::-1][max(0, int(np.ceil(share * len(mine))) - 1)] * 1000)
            / 1000,
        )
        expected = mine >= (cut if share else 0.95)
        assert np.array_equal(said.counted[:, 0].numpy()[classes == c], expected)


def test_confidence_zero_counts_everything():
    assert make_pseudo_labels(draw_logits(), False, 0.0, 0.0).counted.all()


def test_the_rare_class_does_not_starve():
    logits = torch.zeros(1, 3, 10, 10)
    logits[:, 0], logits[:, 1, :2] = 10.0, 10.5  # 20 voxels of class 1, at 0.62; the rest sure
    strict = make_pseudo_labels(logits, False, 0.95, 0.0)
    fair = make_pseudo_labels(logits, False, 0.95, 0.2)
    rare = strict.classes == 1
    assert rare.sum() == 20
    assert not strict.counted[rare].any()
    assert fair.counted[rare].sum() >= 4
    assert strict.counted[~rare].all()


def test_regions_count_by_the_least_sure_one():
    logits = torch.stack([torch.tensor([4.0, 4.0]), torch.tensor([0.1, -5.0])])[None]
    said = make_pseudo_labels(logits, True, 0.9, 0.0)
    assert said.labels.tolist() == [[[True, True], [True, False]]]
    assert said.counted.tolist() == [[[False, True]]]
    assert said.classes.tolist() == [[[3, 1]]]


@pytest.mark.parametrize("regions", [False, True])
def test_squared_difference_equals_numpy(regions):
    logits, teacher = draw_logits(), draw_logits(scale=1.0).softmax(1)
    mask = torch.rand((2, 1, 20, 20), generator=torch.Generator().manual_seed(1)) > 0.5
    x = logits.numpy().astype(float)
    e = np.exp(x)
    p = 1 / (1 + np.exp(-x)) if regions else e / e.sum(1, keepdims=True)
    squares = ((p - teacher.numpy()) ** 2).mean(1)
    expected = squares[mask[:, 0].numpy()].mean()
    found = squared_difference(logits, teacher, mask, regions)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(squared_difference(logits, teacher, torch.zeros_like(mask), regions)) == 0


def test_counted_values_are_those_of_bincount():
    values = torch.randint(0, 5, (3, 4), generator=torch.manual_seed(0))
    weights = values > 1
    assert torch.equal(count_values(values, 7), torch.bincount(values.flatten(), minlength=7))
    expected = torch.bincount(values.flatten(), weights.flatten().double(), minlength=7).long()
    assert torch.equal(count_values(values, 7, weights), expected)


def test_very_many_regions_have_thresholds_of_what_occurs(monkeypatch):
    """As few regions have, where each combination has a threshold whether it occurs or not."""
    logits = torch.randn((2, 3, 16, 16), generator=torch.manual_seed(1))
    few = make_pseudo_labels(logits, True, 0.9, 0.3)
    monkeypatch.setattr(pseudo_labels, "MOST_CLASSES", 4)
    many = make_pseudo_labels(logits, True, 0.9, 0.3)
    assert torch.equal(few.counted, many.counted)
    assert 0.2 < few.counted.float().mean() < 1
