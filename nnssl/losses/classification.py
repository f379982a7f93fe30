"""Classification of what a pretext task asks: cross entropy, and what guessing would cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def classify(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Loss of answers to questions with one right class of K, and terms for the log.

    .. math:: L = -\\frac{1}{Q} \\sum_q \\ln \\mathrm{softmax}(z_q)_{y_q}

    Ranks hold equally many questions, so that the mean over ranks is the loss of one process.

    Args:
        logits: z, (Q, K), any floating type; computed in float32.
        target: y, (Q,) int64.

    Returns:
        `loss` with gradient; `accuracy`; `chance`, 1 / K; `collapse_loss`, ln K, that of equal
        logits.
    """
    classes = logits.shape[1]
    return {
        "loss": functional.cross_entropy(logits.float(), target),
        "accuracy": (logits.detach().argmax(1) == target).float().mean(),
        "chance": logits.new_full((), 1 / classes, dtype=torch.float32),
        "collapse_loss": logits.new_full((), math.log(classes), dtype=torch.float32),
    }


@torch.no_grad()
def count_confusions(target: Tensor, answer: Tensor, classes: int) -> Tensor:
    """Share of each answer (column) among the questions of a class (row), (K, K); else 0."""
    counts = torch.bincount(target * classes + answer, minlength=classes**2)
    table = counts.view(classes, classes).float()
    return table / table.sum(1, keepdim=True).clamp_min(1)
