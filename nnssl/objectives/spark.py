"""Masked autoencoding with an encoder that cannot see through the mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnssl.common.checks import Count, NotNegative
from nnssl.modules import unet
from nnssl.modules.masked_unet import MaskedEncoder, fill_hidden
from nnssl.objectives.base import Context
from nnssl.objectives.mae import MAEObjective, MaskRatio
from nnssl.objectives.reconstruction import Corrupted


class SparkObjective(MAEObjective):
    r"""Masked autoencoding as a sparse network does it: the mask holds in every encoder stage.

    .. math:: L = \frac{1}{|M|} \sum_{v \in M} (D(\phi(E_{1-M}(x)))_v - x_v)^2

    E computes on visible cells only (convolutions are hidden again, norms count visible cells
    only), so that features of visible cells do not depend on what is hidden, and statistics stay
    those of an image; phi puts a learned token per stage into the hidden cells of every skip
    connection and of the bottleneck; D is the decoder.

    Reference: Tian et al., *Designing BERT for convolutional networks: sparse and hierarchical
    masked modeling*, ICLR 2023, arXiv:2301.03580; for the planned U-Net in 3D Wald et al.,
    *Revisiting MAE pre-training for 3D medical image segmentation*, CVPR 2025, arXiv:2410.23132.

    Differs from the paper: the decoder is the U-Net's own and is transferred, hence no further
    normalisation and convolution between token and decoder; the target is not normalised and three
    quarters are hidden (Wald et al.; Tian et al. hide 0.6 and normalise: `mask_ratio`,
    `normalise_target`); masked dense convolutions, no sparse ones.

    Shapes: view (B, C, *S), S divisible by the blocks.

    Args:
        mask_ratio: share of the blocks that is hidden; more is harder; two stay at least.
        block: voxels of a block per array axis, multiples of the bottleneck's stride, which is also
            what null means.
    """

    least_visible = 2  # cells of the bottleneck that InstanceNorm needs

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        mask_ratio: MaskRatio = 0.75,
        block: Sequence[Count] | None = None,
        normalise_target: bool = False,
        position: NotNegative = 0.0,
    ) -> None:
        super().__init__(
            network,
            context,
            mask_ratio=mask_ratio,
            block=block,
            normalise_target=normalise_target,
            position=position,
        )
        stride = unet.total_stride(network)
        if any(size % step for size, step in zip(self.block, stride, strict=True)):
            raise ValueError(
                f"block: found {list(self.block)}, allowed are multiples of the bottleneck's "
                f"stride {stride}, or null"
            )
        self.encoder = MaskedEncoder(network)
        axes = [1] * len(context.patch_size)
        self.tokens = nn.ParameterList(
            nn.Parameter(nn.init.trunc_normal_(torch.empty(1, features, *axes), std=0.02))
            for features in unet.output_channels(network)
        )

    def decode(self, task: Corrupted) -> Tensor:
        assert task.visible is not None
        stages = self.encoder(task.image, task.visible)
        filled = [
            fill_hidden(features, task.visible, token)
            for features, token in zip(stages, self.tokens, strict=True)
        ]
        return unet.decode(self.network, filled)[-1]
