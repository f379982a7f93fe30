"""BYOL: predict, from one view, what a slowly following target network says of another view."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnssl.common.checks import Count, Fraction
from nnssl.losses.siamese import byol_loss
from nnssl.modules import metrics, unet
from nnssl.modules.heads import MLP, Normalisation, Pooling, SpatialPooling
from nnssl.modules.memory import MomentumCopy, rise_to_one
from nnssl.objectives.base import Batch, Context, Objective

MEASURED = 1024  # embeddings, evenly spaced, whose spread is measured


class BYOLBase(Objective):
    """What global and dense BYOL share: networks, heads, loss over all ordered pairs of views.

    A subclass says which map is compared (`decoder_levels`, 0: the bottleneck), what of it the
    projector sees (`pool`) and, where it compares places, brings two views together (`_align`).

    The terms beside the loss tell learning from collapse: `mismatched_loss` takes the targets from
    other samples. Where the loss lies clearly below it, embeddings tell samples apart; at collapse
    both are 0, `embedding_std` is 0 and `effective_rank` 1.
    """

    best = None
    shares = True
    validated = ("mismatched_loss",)
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {"loss": ("mismatched_loss",)}
    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {"global": {"count": 2}}

    decoder_levels = 0
    pool: nn.Module

    def _make_heads(
        self,
        momentum: float,
        widths: tuple[int, int, int],
        layers: tuple[int, int],
        normalisation: Normalisation,
    ) -> None:
        """Projector, predictor and target network.

        Args:
            momentum: of the target network at the beginning.
            widths: of the features, the hidden layers, the embedding.
            layers: of projector and predictor.
            normalisation: what follows the hidden layers.
        """
        features, hidden, embedding = widths
        self.momentum = momentum
        self.projector = MLP(features, hidden, embedding, layers[0], normalisation)
        self.predictor = MLP(embedding, hidden, embedding, layers[1], normalisation)
        online = (self.network, self.projector)
        self.target: Any = nn.ModuleList(MomentumCopy(module) for module in online)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = list(batch["views"].values())
        features = self.encode_views(batch)
        if self.decoder_levels:
            features = self.decode_views(batch, self.decoder_levels)
        read = self.pool(features[-1])  # (V*B, F, *T), T = () for whole views
        embedding = _each_place(self.projector, read)  # (V*B, D, *T)
        prediction = _each_place(self.predictor, embedding).unflatten(0, (len(views), -1))
        target = self._make_targets(torch.cat([view.image for view in views]))
        target = target.unflatten(0, (len(views), -1))
        voxels, losses, mismatched = self._weigh(batch), [], []
        for a, b in permutations(range(len(views)), 2):
            seen, weights = self._align(voxels, target[a], views[a], views[b])
            losses.append(byol_loss(prediction[b], seen, weights))
            with torch.no_grad():
                mismatched.append(byol_loss(prediction[b], seen.roll(1, 0), weights))
        loss = torch.stack(losses).mean()
        rows = target.flatten(0, 1).movedim(1, -1).flatten(0, -2)
        rows = rows[:: 1 + len(rows) // MEASURED]
        return {
            "loss": loss,
            "mismatched_loss": torch.stack(mismatched).mean(),
            "embedding_std": metrics.embedding_std(rows),
            "effective_rank": metrics.effective_rank(rows),
            "collapse_loss": torch.zeros_like(loss),
        }

    def after_step(self, batch: Batch, progress: float) -> None:
        for copy in self.target:
            copy.update(rise_to_one(self.momentum, progress))

    @torch.no_grad()
    def _make_targets(self, images: Tensor) -> Tensor:
        """What the target network says of images (N, C, *S): (N, D, *T)."""
        network, projector = (copy.module for copy in self.target)
        features = unet.encode(network, images)
        if self.decoder_levels:
            features = unet.decode(network, features, self.decoder_levels)
        return _each_place(projector, self.pool(features[-1]))

    def _weigh(self, batch: Batch) -> Tensor | None:
        """Weights of the raw patches' voxels (B, 1, *P), where places are compared."""
        return None

    def _align(
        self, voxels: Tensor | None, target: Tensor, a: Any, b: Any
    ) -> tuple[Tensor, Tensor | None]:
        """View a's targets (B, D, *T) at the places of view b, and the weights of these places."""
        return target, None


class BYOLObjective(BYOLBase):
    r"""Bootstrap your own latent: agreement of whole views, without negatives.

    .. math:: \mathcal{L} = \frac{1}{P} \sum_{(a, b)} \left( 2 - 2 \cos(q(g(f(x_b))),
        \mathrm{sg}(g_\xi(f_\xi(x_a)))) \right)

    over the P ordered pairs of views. f is the U-Net's encoder, g the projector, q the predictor;
    the target's weights follow, :math:`\xi \leftarrow m \xi + (1 - m) \theta`, and m rises along a
    cosine to 1 at the end of the training.

    Reference: Grill et al., *Bootstrap your own latent: a new approach to self-supervised
    learning*, NeurIPS 2020, arXiv:2006.07733; on ACDC Kalapos and Gyires-Tóth, *Self-supervised
    pretraining for 2D medical image segmentation*, ECCV Workshops 2022, arXiv:2209.00314.

    Differs from the paper: the mean over both directions instead of their sum; averages over a grid
    of cells instead of one (InstanceNorm leaves next to nothing for plain pooling to tell); views
    are rotated, zoomed, shifted and mirrored instead of cropped to 8 to 100 % of their area;
    smaller heads; AdamW by default (`training.optimizer: lars` is the paper's).

    Shapes: views (B, C, *S) each, V of them; embeddings (V * B, D).

    Args:
        momentum: of the target network at the beginning, 1 at the end of the training.
        pooling: from the feature map to a vector: mean, mean and deviation, means over a grid of
            cells, or maximum.
        grid: cells per axis of the pooling `grid`; more keep more of where things lie.
        hidden_features: width of the hidden layers of projector and predictor.
        embedding_features: D, the length of an embedding.
        projector_layers: linear layers of the projector; 1 is a single linear map.
        predictor_layers: linear layers of the predictor.
        normalisation: what follows the hidden layers; `layer` and `none` know no batch.
    """

    least_samples = 12

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        momentum: Fraction = 0.99,
        pooling: Pooling = "grid",
        grid: Count = 3,
        hidden_features: Count = 1024,
        embedding_features: Count = 256,
        projector_layers: Count = 2,
        predictor_layers: Count = 2,
        normalisation: Normalisation = "batch",
    ) -> None:
        super().__init__(network, context)
        width = unet.output_channels(network)[-1]
        self.pool = SpatialPooling(width, pooling, dimension=len(context.patch_size), grid=grid)
        widths = self.pool.out_features, hidden_features, embedding_features
        self._make_heads(momentum, widths, (projector_layers, predictor_layers), normalisation)


def _each_place(head: nn.Module, features: Tensor) -> Tensor:
    """A head, applied to the vector at every place: (N, F, *T) -> (N, D, *T) float32."""
    rows = features.movedim(1, -1)  # (N, *T, F)
    found = head(rows.flatten(0, -2)).float()
    return found.reshape(*rows.shape[:-1], -1).movedim(-1, 1)
