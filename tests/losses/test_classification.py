"""Classification: the loss beside NumPy, the cost of a collapsed network, confusions."""

from __future__ import annotations

import math

import numpy as np
import torch

from nnssl.losses.classification import classify, count_confusions


def test_loss_and_accuracy_are_those_of_numpy() -> None:
    logits, target = torch.randn(20, 7), torch.randint(0, 7, (20,))
    terms = classify(logits.double(), target)
    z, y = logits.numpy(), target.numpy()
    shares = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    assert math.isclose(terms["loss"], -np.log(shares[range(20), y]).mean(), rel_tol=1e-5)
    assert math.isclose(terms["accuracy"], (z.argmax(1) == y).mean(), rel_tol=1e-6)


def test_equal_logits_cost_the_logarithm_of_the_number_of_classes() -> None:
    terms = classify(torch.zeros(8, 10, dtype=torch.bfloat16), torch.arange(8))
    assert terms["loss"].dtype == torch.float32
    assert math.isclose(terms["loss"], math.log(10), rel_tol=1e-6)
    assert math.isclose(terms["collapse_loss"], math.log(10), rel_tol=1e-6)
    assert math.isclose(terms["chance"], 0.1, rel_tol=1e-6)


def test_confusions_are_shares_of_each_class() -> None:
    table = count_confusions(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 1]), 3)
    assert table.tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0, 0, 0]]
