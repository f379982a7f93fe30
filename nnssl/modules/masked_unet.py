"""A U-Net's encoder that sees only some blocks of the image, as a sparse convolution would.

Hiding the input is not enough: convolutions carry visible values into hidden cells, biases fill
those, and norms count them. Here the output of every convolution is hidden again, and InstanceNorm
and BatchNorm take their statistics from visible cells only. Modules change their class, not their
parameters: the keys of the state dict stay, and without a mask they compute what they always did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.common.distributed import all_gather
from nnssl.modules import unet
from nnssl.modules.blocks import enlarge


class Visible:
    """The mask that all masked modules of one encoder share, at the size of each stage."""

    def __init__(self) -> None:
        self.masks: dict[tuple[int, ...], Tensor] = {}

    @contextmanager
    def shown(self, blocks: Tensor, sizes: Sequence[Sequence[int]]) -> Iterator[None]:
        """Lets the modules compute on visible cells while the context lasts.

        Args:
            blocks: (B, 1, *cells) bool.
            sizes: sizes of the maps that occur, multiples of the cells.
        """
        self.masks = {tuple(size): enlarge(blocks, size) for size in sizes}
        try:
            yield
        finally:
            self.masks = {}

    def at(self, x: Tensor) -> Tensor | None:
        """(B, 1, *S) bool for a map (B, F, *S); None while everything is visible."""
        return self.masks[tuple(x.shape[2:])] if self.masks else None


class _Hiding(nn.Module):
    """A convolution whose output is zero in hidden cells."""

    visible: Visible

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = super().forward(x)
        mask = self.visible.at(output)
        return output if mask is None else output * mask


class _CountingVisible(nn.Module):
    """A norm with mean and variance of visible cells; hidden cells are zero, as they came."""

    visible: Visible

    def forward(self, x: Tensor) -> Tensor:
        mask = self.visible.at(x)
        if mask is None:
            output: Tensor = super().forward(x)
            return output
        with torch.autocast(x.device.type, enabled=False):
            return _masked_norm(x.float(), mask, self).to(x.dtype)


_MASKED: dict[type, type] = {
    kind: type(f"Masked{kind.__name__}", (mask, kind), {})
    for mask, kinds in (
        (_Hiding, (nn.Conv2d, nn.Conv3d)),
        (_CountingVisible, (nn.InstanceNorm2d, nn.InstanceNorm3d)),
        (_CountingVisible, (nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)),
    )
    for kind in kinds
}
_NORMS = (nn.GroupNorm, nn.LayerNorm)


class MaskedEncoder:
    """Encodes visible blocks; nothing that is hidden reaches a feature or a statistic.

    Args:
        network: the U-Net; the convolutions and norms of its encoder change their class.

    Raises:
        ValueError: the encoder normalises with something else than InstanceNorm or BatchNorm.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.visible = network, Visible()
        self._mask_modules()

    def _mask_modules(self) -> None:
        """Done at every call: several processes exchange their BatchNorms for others at first."""
        for module in unet.encoder_modules(self.network):
            if isinstance(module, _NORMS):
                raise ValueError(
                    f"network: found {type(module).__name__} in the encoder, allowed: "
                    "InstanceNorm and BatchNorm, whose statistics can leave hidden voxels out. "
                    "Plan the experiment with InstanceNorm."
                )
            if type(module) in _MASKED:
                module.__class__ = _MASKED[type(module)]
                module.visible = self.visible  # type: ignore[assignment]  # no parameter, no key

    def __call__(self, images: Tensor, blocks: Tensor) -> list[Tensor]:
        """Outputs of all stages, zero in hidden cells, highest resolution first.

        Args:
            images: (B, C, *S).
            blocks: (B, 1, *cells) bool, True where visible.

        Raises:
            ValueError: the map of a stage is no multiple of the cells.
        """
        self._mask_modules()
        size = images.shape[2:]
        with self.visible.shown(blocks, [size, *unet.stage_sizes(self.network, size)]):
            return unet.encode(self.network, images * self.visible.masks[tuple(size)])


def fill_hidden(features: Tensor, blocks: Tensor, token: Tensor) -> Tensor:
    """Puts a mask token into hidden cells.

    Args:
        features: (B, F, *S), zero in hidden cells.
        blocks: (B, 1, *cells) bool, True where visible.
        token: (1, F, 1, ...).

    Returns:
        (B, F, *S) of the features' type.
    """
    visible = enlarge(blocks, features.shape[2:])
    return torch.where(visible, features, token.to(features.dtype))


def _masked_norm(x: Tensor, mask: Tensor, norm: Any) -> Tensor:
    parameters = (1, -1, *[1] * (x.ndim - 2))
    of_batch = isinstance(norm, nn.modules.batchnorm._BatchNorm)
    axes = (*[0] * of_batch, *range(2, x.ndim))
    if of_batch and not norm.training:
        centred = (x - norm.running_mean.reshape(parameters)) * mask
        variance = norm.running_var.reshape(parameters)
    else:
        total = _sum_over_ranks if of_batch else torch.Tensor.float
        count = total(mask.sum(axes, keepdim=True)).clamp_min(1)  # (B or 1, 1, 1, ...)
        mean = total(x.sum(axes, keepdim=True)) / count  # hidden cells of x are zero
        centred = (x - mean) * mask
        variance = total(centred.square().sum(axes, keepdim=True)) / count  # (B or 1, F, 1, ...)
        if of_batch:
            _remember(norm, mean, variance * count / (count - 1).clamp_min(1))
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is None or norm.bias is None:
        return centred * scale
    return torch.addcmul(
        norm.bias.reshape(parameters) * mask, centred, scale * norm.weight.reshape(parameters)
    )


def _sum_over_ranks(x: Tensor) -> Tensor:
    """Of (1, ...), with gradient."""
    return all_gather(x.float()).sum(0, keepdim=True)


@torch.no_grad()
def _remember(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """What BatchNorm does with the statistics of a batch."""
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean.flatten(), norm.momentum)
    norm.running_var.lerp_(variance.flatten(), norm.momentum)
