"""Contrastive loss over pairs that are given as masks (SimCLR, G^R, G^D-, G^D)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def contrastive_loss(
    embeddings: Tensor,
    positive: Tensor,
    negative: Tensor,
    temperature: float,
    normalizer: float | None = None,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """Weighted sum of `-log(e^s_ap / (e^s_ap + sum_{n in N_a} e^s_an))` over positive pairs (a, p).

    `s_ab = cos(z_a, z_b) / temperature`. A denominator holds one positive and the anchor's
    negatives, never a second positive. With m equal embeddings every term is `ln(1 + |N_a|)`.
    An anchor without positives adds nothing, one without negatives adds 0. Computed in float32
    (float64 for float64 input), under autocast too. `nnssl.losses.pairs` builds the masks.

    Several processes: every rank gathers the embeddings of all ranks, builds the masks of all,
    and passes the rows of its own anchors:

        z = all_gather(embeddings)  # nnssl.common.distributed
        rows = local_rows(len(embeddings))
        loss = contrastive_loss(z, positive, negative, temperature, rows=rows)

    The loss of `rows` is scaled by N / (end - begin), so that its mean over ranks of equal share
    is the loss of one process. `all_gather` adds up the gradients of all ranks and
    DistributedDataParallel averages them, so that the gradient is that of one process too.

    Args:
        embeddings: z, (N, D), any floating type; only the direction of a row counts.
        positive: (N, N) weights >= 0 of the terms (a, p), row a the anchor, zero on the diagonal.
        negative: (N, N) bool; `negative[a, n]` puts n into N_a. Disjoint from the positives.
        temperature: positive divisor of the cosine similarity.
        normalizer: what the sum is divided by; default: the sum of `positive`. It belongs to the
            whole batch, also where `rows` is given.
        rows: begin and end (exclusive) of the anchors that count, default all.

    Returns:
        Scalar, float32 or float64.

    Raises:
        ValueError: temperature, normalizer or rows out of range, shapes that do not fit, or no
            positive pair in the whole batch.

    Reference:
        Chaitanya, Erdil, Karani, Konukoglu: Contrastive learning of global and local features for
        medical image segmentation with limited annotations. NeurIPS 2020, arXiv:2006.10511.
        Chen, Kornblith, Norouzi, Hinton: A simple framework for contrastive learning of visual
        representations. ICML 2020, arXiv:2002.05709.

    Differs from the paper:
        The default normalizer is the number of positive pairs; the published code divides by the
        number of images. Pass `normalizer` for the latter.
    """
    _check(embeddings, positive, negative, temperature)
    begin, end = _checked_rows(rows, len(embeddings))
    normalizer = _checked_normalizer(normalizer, positive)
    with torch.autocast(embeddings.device.type, enabled=False):
        z = functional.normalize(_at_least_float32(embeddings), dim=1)
        similarity = z[begin:end] @ z.T / temperature  # (rows, N)
        blocked = similarity.masked_fill(~negative[begin:end], torch.finfo(z.dtype).min)
        terms = functional.softplus(blocked.logsumexp(dim=1, keepdim=True) - similarity)
        total = (positive[begin:end].to(z.dtype) * terms).sum()
    return total * (len(embeddings) / (end - begin) / normalizer)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check(embeddings: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> None:
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings: found shape {tuple(embeddings.shape)}, allowed: (N, D)")
    square = (len(embeddings), len(embeddings))
    for name, mask in (("positive", positive), ("negative", negative)):
        if tuple(mask.shape) != square:
            raise ValueError(f"{name}: found shape {tuple(mask.shape)}, allowed: {square}, (N, N)")
    if negative.dtype != torch.bool:
        raise ValueError(f"negative: found dtype {negative.dtype}, allowed: torch.bool")
    if not temperature > 0:
        raise ValueError(f"temperature: found {temperature}, allowed: a number above 0")


def _checked_rows(rows: tuple[int, int] | None, count: int) -> tuple[int, int]:
    begin, end = rows or (0, count)
    if not 0 <= begin < end <= count:
        raise ValueError(f"rows: found {rows}, allowed: 0 <= begin < end <= {count} (embeddings)")
    return begin, end


def _checked_normalizer(normalizer: float | None, positive: Tensor) -> float:
    weight = float(positive.sum())
    if weight <= 0:
        raise ValueError(
            f"positive: found no positive pair among {len(positive)} embeddings, allowed: at least "
            "one. Use two views per image, or several volumes per part of the body."
        )
    if normalizer is not None and not normalizer > 0:
        raise ValueError(f"normalizer: found {normalizer}, allowed: a number above 0, or None")
    return weight if normalizer is None else normalizer
