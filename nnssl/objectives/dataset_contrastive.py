"""Global contrast over several datasets: four ways to keep features from telling the datasets."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Interval
from torch import Tensor, nn

from nnssl.common import distributed
from nnssl.common.checks import Count, Positive
from nnssl.losses.contrastive import collapse_value, contrastive_loss, find_pairs
from nnssl.modules import unet
from nnssl.modules.dataset_means import DatasetMeans
from nnssl.objectives.base import Batch, Context
from nnssl.objectives.contrastive import PATCH, ContrastiveObjective, describe_views

STILL = "still"  # group of views that change in intensity only
DATASET = 2  # column of what `describe_views` returns


class Contrast(NamedTuple):
    """A contrastive loss, and what it was taken over on all ranks: see `_metrics`."""

    loss: Tensor
    embeddings: Tensor
    positive: Tensor
    negative: Tensor
    patches: Tensor

    @property
    def collapse(self) -> Tensor:
        return collapse_value(self.positive, self.negative)


class DatasetContrastiveObjective(ContrastiveObjective):
    r"""Contrast of an encoder that many datasets share (universal encoder), in four variants.

    With l the loss of G^D or G^D- (`pairs`), z the embeddings, f the flattened map of the
    bottleneck, :math:`\mu_d` the mean map of an image's dataset, and :math:`\lambda` the `share`:

    - `representation`: :math:`\lambda\, l(z) + (1 - \lambda)\, l(f)`
    - `2_steps`: :math:`\lambda\, l(z) + (1 - \lambda)\, l(z)` with negatives of the anchor's own
      dataset only in the second: telling datasets apart gains nothing there
    - `demeaned`: l(z), z made of :math:`f - \mu_d`
    - `demeaned_representation`: :math:`\lambda\, l(z) + (1 - \lambda)\, l(f - \mu_d)`

    f is taken over the views of the group `still`, where there is one (views that keep their
    place, so that cells of two maps see the same), z over the others. The means are those of the
    last epoch, 0 in the first.

    Reference: the thesis code PDM (universal encoder), losses `representation_loss_*`,
    `2_steps_*`, `demeaned_representation_loss` and `_2`; G^D as in `ContrastiveObjective`.

    Differs from the paper: any number of datasets and volumes; no part of the own volume is a
    negative by mistake of an index; means are taken over the views of an epoch as they were
    trained on, not once more over all images with the encoder at rest; `dataset_similar` may be
    chosen for the demeaned variants too (there always false).

    Shapes: views (B, C, *S); maps (V * B, F, *T); embeddings (V * B, D).

    Args:
        variant: what is contrasted, see above.
        share: of the first loss in the sum, where there are two.
        pairs: which pairs are positive and which negative, see `ContrastiveObjective`.
        temperature: divisor of the cosine similarity; a larger one looks less at the hardest pairs.
        grid: cells per axis over which the map is averaged before the projector.
        dataset_similar: the datasets show the same anatomy, so that the same part of another one is
            no negative.
    """

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        variant: Literal[
            "representation", "2_steps", "demeaned", "demeaned_representation"
        ] = "demeaned",
        share: Annotated[float, Interval(gt=0, lt=1)] = 0.5,
        pairs: Literal["partitions", "partitions_across"] = "partitions_across",
        temperature: Positive = 0.1,
        grid: Count = 3,
        dataset_similar: bool = True,
    ) -> None:
        super().__init__(
            network,
            context,
            pairs=pairs,
            temperature=temperature,
            grid=grid,
            dataset_similar=dataset_similar,
        )
        self.variant, self.share = variant, share
        size = unet.stage_sizes(network, context.patch_size)[-1]
        features = unet.output_channels(network)[-1]
        self._newest: Any = ()
        self.means: DatasetMeans | None = None
        if variant.startswith("demeaned"):
            self.means = DatasetMeans(context.datasets, features, size)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        still = [name.startswith(f"{STILL}_") for name in batch["views"]]
        maps, own = (
            self.encode_views(batch)[-1],
            describe_views(batch, self.context),
        )  # (V*B, F, *T), (V*B, M)
        centred, demeaned = maps, self.variant == "demeaned"
        if self.means is not None:
            self._newest = maps.detach(), own[:, DATASET]
            centred = self.means.subtract(maps, own[:, DATASET])
        moved = [not it for it in still]
        embedded, members = _take(centred if demeaned else maps, moved), _take(own, moved)
        embedding = self._embed(self.projector, [embedded])
        first = self._contrast(embedding, members)
        terms = self._metrics(*first[1:])
        if demeaned:
            return {"loss": first.loss, **terms}
        if self.variant == "2_steps":
            second = self._contrast(embedding, members, within_dataset=True)
        else:
            chosen = still if any(still) else [True] * len(still)
            features = _take(centred, chosen).flatten(1).float()  # (V'*B, F * T)
            second = self._contrast(features, _take(own, chosen))
        return {
            **terms,
            "loss": self.share * first.loss + (1 - self.share) * second.loss,
            "first_loss": first.loss.detach(),
            "second_loss": second.loss.detach(),
            "collapse_loss": self.share * first.collapse + (1 - self.share) * second.collapse,
        }

    def after_step(self, batch: Batch, progress: float) -> None:
        if self.means is not None:
            self.means.collect(*self._newest)

    def after_epoch(self) -> None:
        if self.means is not None:
            self.means.refresh()

    def _contrast(self, vectors: Tensor, own: Tensor, within_dataset: bool = False) -> Contrast:
        """The loss of vectors (n, D) that are described by (n, M), among those of all ranks."""
        z = distributed.all_gather(vectors)
        members = distributed.all_gather_no_grad(own)
        pairs = find_pairs(
            self.pairs,
            *members[:, :3].unbind(1),
            dataset_similar=self.dataset_similar,
            within_dataset=within_dataset,
        )
        rows = distributed.local_rows(len(vectors))
        loss = contrastive_loss(z, *pairs, self.temperature, rows)
        return Contrast(loss, z.detach(), *pairs, members[:, -PATCH:])


def _take(rows: Tensor, views: list[bool]) -> Tensor:
    """Of rows (V * B, ...) those of the chosen views."""
    parts = rows.chunk(len(views))
    return torch.cat([part for part, chosen in zip(parts, views, strict=True) if chosen])
