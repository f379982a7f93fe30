"""Squared error of reconstructed images, and what trivial answers would cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def reconstruction_loss(answer: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """`sum_v w_v (x'_v - x_v)^2 / sum_v w_v`: mean squared error over the voxels that count.

    Computed in float32 (float64 for float64 input), under autocast too. Without any weight above
    zero the loss is 0.

    Args:
        answer: x', (B, C, *S), any floating type.
        target: x, (B, C, *S).
        weight: w, (B, 1, *S) or (B, C, *S), at least 0; None: all voxels count alike.

    Returns:
        Scalar, float32 or float64.

    Raises:
        ValueError: shapes that do not fit.

    Reference:
        Zhou, Sodha, Pang, Gotway, Liang: Models Genesis. Medical Image Analysis 2021,
        arXiv:2004.07882 (all voxels); He, Chen, Xie, Li, Dollar, Girshick: Masked autoencoders are
        scalable vision learners. CVPR 2022, arXiv:2111.06377 (masked voxels only).

    Differs from the paper: nothing.
    """
    if answer.shape != target.shape:
        raise ValueError(
            f"answer has shape {tuple(answer.shape)}; allowed is that of the target, "
            f"{tuple(target.shape)}"
        )
    kind = torch.promote_types(torch.promote_types(answer.dtype, target.dtype), torch.float32)
    return _mean((answer.to(kind) - target.to(kind)).square(), weight)


@torch.no_grad()
def trivial_losses(
    target: Tensor, corrupted: Tensor, weight: Tensor | None = None
) -> dict[str, Tensor]:
    """Losses of answers that know nothing; a reconstruction means something below all of them.

    Args:
        target: x, (B, C, *S).
        corrupted: what the network saw, (B, C, *S).
        weight: as in `reconstruction_loss`.

    Returns:
        `mean_image_loss`: each image and channel answered by its own mean over the voxels that
        count (its variance); `identity_loss`: the corrupted image given back; `collapse_loss`: all
        images answered by one number per channel, the best there is.
    """
    own = _mean(target.float(), weight, kept=[0, 1])
    common = _mean(target.float(), weight, kept=[1])
    return {
        "mean_image_loss": reconstruction_loss(own.expand_as(target), target, weight),
        "identity_loss": reconstruction_loss(corrupted, target, weight),
        "collapse_loss": reconstruction_loss(common.expand_as(target), target, weight),
    }


def _mean(values: Tensor, weight: Tensor | None, kept: Sequence[int] = ()) -> Tensor:
    """Weighted mean over the axes that are not kept, which stay in the shape, or over all."""
    axes, keepdim = [axis for axis in range(values.ndim) if axis not in kept], bool(kept)
    if weight is None:
        return values.mean(axes, keepdim)
    weight = weight.to(values.dtype).expand_as(values)
    total = (values * weight).sum(axes, keepdim)
    return total / weight.sum(axes, keepdim).clamp_min(1e-12)
