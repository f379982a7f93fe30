"""Dense BYOL: predict, at every place of a view, what the target network says of that place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnssl.common.checks import Count, Fraction, Whole
from nnssl.modules import unet
from nnssl.modules.grids import align, find_shared
from nnssl.modules.heads import Normalisation
from nnssl.modules.tissue import weigh_tokens, weigh_voxels
from nnssl.objectives.base import Batch, Context
from nnssl.objectives.byol import BYOLBase

FINEST_CELL = 4  # voxels per cell and axis that the decoder goes up to by default


class DenseBYOLObjective(BYOLBase):
    r"""BYOL between the same places of two views, on a map of the encoder or the decoder.

    .. math:: \mathcal{L} = \frac{1}{P B} \sum_{(a, b)} \sum_{i=1}^B \frac{\sum_n w_{in}
        (2 - 2 \cos(q^b_{in}, \mathrm{sg}(\tilde z^{a \to b}_{in})))}{\sum_n w_{in}}

    over the P ordered pairs of views, B samples and the cells n of the map. q are the predictions
    of the online network, :math:`\tilde z^{a \to b}` the embeddings that the target network makes
    of view a, read at the places of b's cells through the views' matrices. w is 0 outside the
    overlap and outside the volume, 1 for tissue, `background_weight` for the rest.

    Reference: Grill et al., *Bootstrap your own latent*, NeurIPS 2020, arXiv:2006.07733; by pixels
    Xie et al., *Propagate yourself: exploring pixel-level consistency for unsupervised visual
    representation learning* (PixPro), CVPR 2021, arXiv:2011.10043.

    Differs from the paper: the global embedding gives way to one per cell; PixPro pairs all cells
    within a distance, here embeddings are interpolated at the very place, and there is no
    propagation between cells. Background counts less.

    Shapes: views (B, C, *S); embeddings (V * B, D, *T), T cells per axis.

    Args:
        momentum: of the target network at the beginning, 1 at the end of the training.
        decoder_levels: the map is that after so many decoder levels, which are trained too; 0: the
            bottleneck; null: as many as leave at most 4 voxels per cell and axis.
        hidden_features: width of the hidden layers of projector and predictor.
        embedding_features: D, the length of an embedding.
        projector_layers: linear layers of the projector; 1 is a single linear map.
        predictor_layers: linear layers of the predictor.
        normalisation: what follows the hidden layers; `layer` and `none` know no batch.
        background_weight: weight of a cell without tissue.
        min_overlap: share of each other that two views must see, else the pair does not count.
    """

    decodes = True
    least_samples = 4

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        momentum: Fraction = 0.99,
        decoder_levels: Whole | None = None,
        hidden_features: Count = 256,
        embedding_features: Count = 128,
        projector_layers: Count = 2,
        predictor_layers: Count = 2,
        normalisation: Normalisation = "batch",
        background_weight: Fraction = 0.1,
        min_overlap: Fraction = 0.3,
    ) -> None:
        super().__init__(network, context)
        self.background_weight, self.min_overlap = background_weight, min_overlap
        self.pool, self.decoder_levels = nn.Identity(), _choose_levels(network, decoder_levels)
        features = unet.output_channels(network)[-1 - self.decoder_levels]
        widths = features, hidden_features, embedding_features
        self._make_heads(momentum, widths, (projector_layers, predictor_layers), normalisation)

    @property
    def trained(self) -> unet.Trained:
        return unet.Trained(encoder_stages=None, decoder_levels=self.decoder_levels)

    @torch.no_grad()
    def _weigh(self, batch: Batch) -> Tensor:
        return weigh_voxels(batch, self.background_weight)

    @torch.no_grad()
    def _align(self, voxels: Any, target: Tensor, a: Any, b: Any) -> tuple[Tensor, Tensor]:
        cells = target.shape[2:]
        seen = find_shared(a.matrix, b.matrix, cells, self.min_overlap)
        weights = weigh_tokens(voxels, b.matrix, b.image.shape[2:], cells)
        return align(target, a.matrix, b.matrix), weights * seen


def _choose_levels(network: nn.Module, levels: int | None) -> int:
    """The number of levels, by default so many that a cell has at most `FINEST_CELL` voxels."""
    if levels is not None:
        return unet.count_levels(network, levels)
    totals = torch.tensor(unet.strides(network)).cumprod(0).amax(1)
    return len(totals) - int((totals <= FINEST_CELL).sum())
