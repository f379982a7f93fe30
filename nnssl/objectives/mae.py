"""Masked autoencoding with the planned U-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional

from nnssl.common.checks import Count, NotNegative
from nnssl.modules import unet
from nnssl.modules.blocks import count_cells, enlarge
from nnssl.objectives.base import Batch, Context
from nnssl.objectives.reconstruction import Corrupted, ReconstructionObjective
from nnssl.views.cells import draw_visible_cells

MaskRatio = Annotated[float, Interval(gt=0, lt=1)]
CLEAN: Mapping[str, Any] = dict.fromkeys(
    ("noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted")
)  # no change of intensities: the view is the target


class MAEObjective(ReconstructionObjective):
    r"""Hide blocks of the image, reconstruct them, and count only what was hidden.

    .. math:: L = \frac{1}{|M|} \sum_{v \in M} (f(x \odot (1 - M))_v - x_v)^2

    M, the hidden voxels, consists of blocks as large as the stride of the bottleneck; their number
    is fixed, their place is drawn per image, and hidden voxels are set to 0 (the mean of a z-scored
    image).

    Reference: Wald et al., *Revisiting MAE pre-training for 3D medical image segmentation*,
    CVPR 2025, arXiv:2410.23132, for convolutional U-Nets; He et al., *Masked autoencoders are
    scalable vision learners*, CVPR 2022, arXiv:2111.06377, for the normalised target.

    Differs from the paper: works in 2D and for several channels (hidden together); voxels outside
    the volume are not told from others.

    Shapes: view (B, C, *S), S divisible by the blocks.

    Args:
        mask_ratio: share of the blocks that is hidden; more is harder.
        block: voxels of a block per array axis; null: the bottleneck's stride.
        normalise_target: reconstruct each block's deviation from its own mean, in its own standard
            deviations.
    """

    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "global": {"count": 1, "rotation": 15.0, "scale": (0.8, 1.25), "shift": 0.0, **CLEAN}
    }
    least_visible = 1

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        mask_ratio: MaskRatio = 0.75,
        block: Sequence[Count] | None = None,
        normalise_target: bool = False,
        skips: bool = True,
        position: NotNegative = 0.0,
    ) -> None:
        super().__init__(network, context, skips=skips, position=position)
        self.mask_ratio, self.normalise_target = mask_ratio, normalise_target
        self.block = tuple(unet.total_stride(network) if block is None else block)
        count_cells(context.patch_size, self.block)

    def corrupt(self, batch: Batch) -> Corrupted:
        image = batch["views"]["global_0"].image
        cells = count_cells(image.shape[2:], self.block)
        blocks = draw_visible_cells(
            batch["key"], cells, self.mask_ratio, "mask", self.least_visible
        )
        blocks = blocks.to(image.device, non_blocking=True)
        visible = enlarge(blocks, image.shape[2:])
        target = _normalise(image, self.block) if self.normalise_target else image
        return Corrupted(image * visible, target, (~visible).float(), blocks)


def _normalise(image: Tensor, block: Sequence[int]) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-6) of each block and channel, (B, C, *S)."""
    pool = functional.avg_pool2d if len(block) == 2 else functional.avg_pool3d
    with torch.autocast(image.device.type, enabled=False):
        image = image.float()
        mean = enlarge(pool(image, tuple(block)), image.shape[2:])
        centred = image - mean
        variance = enlarge(pool(centred.square(), tuple(block)), image.shape[2:])
        return centred * (variance + 1e-6).rsqrt()
