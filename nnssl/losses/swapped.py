"""Cross entropy with soft codes, as swapped prediction needs it."""

from __future__ import annotations

import torch
from torch import Tensor

from nnssl.common.distributed import all_reduce_mean


def swapped_prediction(logits: Tensor, codes: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Cross entropy of one view's predictions with the codes of the other.

    .. math:: \frac{-\sum_n w_n \sum_k q_{nk} \ln \mathrm{softmax}_k(l_n)}{\sum_n w_n}

    Sums over n run over the tokens of all ranks: the mean over ranks of the loss is that of one
    process, and so is the gradient that DistributedDataParallel averages. Equal logits cost ln K.

    Args:
        logits: l, (N, K) of this rank's tokens, already divided by the temperature.
        codes: q, (N, K), rows sum to 1; no gradient flows into them.
        weights: (N,) >= 0, default all 1; with no weight at all the loss is 0.

    Returns:
        Scalar, float32 (float64 for float64 logits), also under autocast.

    Raises:
        ValueError: shapes that do not fit.

    Reference:
        Caron et al.: Unsupervised learning of visual features by contrasting cluster assignments
        (SwAV). NeurIPS 2020, arXiv:2006.09882, equation 2.

    Differs from the paper:
        The weights. (The thesis' code divides by K besides: its loss is K times smaller.)
    """
    if logits.shape != codes.shape or logits.ndim != 2:
        raise ValueError(
            f"codes: found shape {tuple(codes.shape)}, allowed: that of the logits, (N, K), here "
            f"{tuple(logits.shape)}"
        )
    with torch.autocast(logits.device.type, enabled=False):
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        terms = -(codes.detach().to(wide) * wide.log_softmax(1)).sum(1)  # (N,)
        counted = torch.ones_like(terms) if weights is None else weights.detach().to(terms)
        total = all_reduce_mean(counted.sum()).clamp_min(torch.finfo(terms.dtype).tiny)
        return (counted * terms).sum() / total
