"""PCRLv2: reconstruction and siamese comparison on the levels of the decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nnssl.common.checks import Fraction
from nnssl.losses.reconstruction import reconstruction_loss, trivial_losses
from nnssl.losses.siamese import symmetric_loss
from nnssl.modules import metrics, unet
from nnssl.modules.grids import resize
from nnssl.modules.heads import LevelHead, Pooling
from nnssl.objectives.base import Batch, Context
from nnssl.objectives.mae import CLEAN
from nnssl.objectives.reconstruction import Corrupted, ReconstructionObjective
from nnssl.views.cells import swap_cells
from nnssl.views.intensity import Change, Exponent, UpTo10, UpTo100, make_intensities
from nnssl.views.randomness import generator


@dataclass(frozen=True)
class Embedded:
    """Views of one size on all L levels of the decoder.

    Attributes:
        levels: maps (V * B, F, *S) of each level, from the bottleneck upwards.
        embedding: per level (V, B, D).
        prediction: per level (V, B, D).
    """

    levels: list[Tensor]
    embedding: list[Tensor]
    prediction: list[Tensor]


class PCRLv2Objective(ReconstructionObjective):
    r"""Reconstruct one view, and compare all views, on a randomly drawn level of the decoder.

    .. math:: L = |D(\tilde x_1) - x_1|^2 + \beta |r_s(\tilde x_1) - x_1|^2
        + l_s(\tilde x_1, \tilde x_2) + \frac{1}{2n} \sum_{i=1}^n \sum_{g=1}^2
        l_{s_i}(\tilde y_i, \tilde x_g)

    x are the two global views and y the n local ones, the tilde their corrupted appearance;
    :math:`l_s(a, b) = -\frac12 [\cos(p_s(a), z_s(b)) + \cos(p_s(b), z_s(a))]` with z held constant;
    s, s_i are levels drawn uniformly; r_s reconstructs from level s;
    :math:`\beta = \frac12 (1 + \cos \pi t)` fades out over the training, t from 0 to 1.

    Reference: Zhou, Lu, Chen, Yang, Yu, *A unified visual information preservation framework for
    self-supervised pre-training in medical image analysis*, IEEE TPAMI 2023, arXiv:2301.00772.

    Differs from the paper: levels are drawn per sample instead of per step (all heads then have a
    gradient in every step); batch statistics are taken over the views of one size; the global views
    overlap because of their ranges, without drawing again; linear output; cells are exchanged
    in 2D too, where the paper cuts holes; local views whose size the strides do not divide are
    resampled; AdamW instead of SGD.

    Shapes: global views (B, C, *S), local views (B, C, *T).

    Args:
        skips: whether the decoder sees skip connections; without them, as in the paper, the halves
            of its convolutions that read skips are not trained.
        pooling: how maps are pooled before the embedding (`average` is the paper's).
        swap: share of the cells of a global view that change their place.
        noise: [probability, lowest, highest strength] of noise on what the network sees, in
            standard deviations of the image; null: none.
        blur: the same of blur, in voxels of the finest axis.
        gamma: the same of an exponent on the image's robust range.
    """

    best = None
    least_samples = 4
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **ReconstructionObjective.panels,
        "siamese loss (mismatched: views of other samples)": (
            "global_loss",
            "local_loss",
            "mismatched_loss",
        ),
    }
    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "global": {
            "count": 2,
            "rotation": 10.0,
            "scale": (0.85, 1.2),
            "stretch": 1.0,
            "shift": 0.05,
            **CLEAN,
        },
        "local": {
            "count": 6,
            "size_fraction": 0.5,
            "rotation": 10.0,
            "scale": (0.6, 1.4),
            "shift": 0.2,
            **CLEAN,
        },
    }

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        skips: bool = False,
        pooling: Pooling = "average",
        swap: Fraction = 0.2,
        noise: Change[UpTo10] | None = (0.5, 0.0, 0.25),
        blur: Change[UpTo100] | None = (0.5, 0.5, 1.5),
        gamma: Change[Exponent] | None = (0.5, 0.7, 1.5),
    ) -> None:
        super().__init__(network, context, skips=skips)
        self.swap = swap
        self.intensities = make_intensities(noise=noise, blur=blur, gamma=gamma)
        features = unet.output_channels(network)[-2::-1]  # from the bottleneck upwards
        dimension = len(context.patch_size)
        self.heads = nn.ModuleList(
            LevelHead(f, context.input_channels, dimension, pooling) for f in features
        )
        self.progress: Tensor
        self.register_buffer("progress", torch.zeros(()))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        task, keys = self.corrupt(batch), batch["key"]
        whole = self._embed([task.image, self._appearance(batch, "global_1")])
        local_names = [name for name in batch["views"] if name.startswith("local_")]
        chosen = self._levels(keys, 1 + len(local_names))
        chosen = chosen.to(task.image.device, non_blocking=True)
        found = unet.project_out(self.network, whole.levels[-1][: len(keys)])
        terms = {
            "reconstruction_loss": reconstruction_loss(found, task.target),
            "level_reconstruction_loss": self._level_reconstruction(whole, task.target, chosen[0]),
            "global_loss": self._compare(whole, chosen[0]),
        }
        if local_names:
            local = self._embed([self._appearance(batch, name) for name in local_names])
            terms["local_loss"] = self._local(whole, local, chosen[1:])
        fading = 0.5 * (1 + torch.cos(math.pi * self.progress))
        shares = {"level_reconstruction_loss": fading}
        loss = torch.stack([shares.get(k, 1.0) * term for k, term in terms.items()]).sum()
        logged = {k: term.detach() for k, term in terms.items()}
        more = self._metrics(task, whole, chosen[0], fading, 1 + bool(local_names))
        return {"loss": loss, **logged, **more}

    def after_step(self, batch: Batch, progress: float) -> None:
        self.progress.fill_(progress)

    def corrupt(self, batch: Batch) -> Corrupted:
        return Corrupted(self._appearance(batch, "global_0"), batch["views"]["global_0"].image)

    def _appearance(self, batch: Batch, name: str) -> Tensor:
        """A view as the network sees it; its geometry stays."""
        image, keys = batch["views"][name].image, batch["key"]
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            if name.startswith("global_"):
                image = swap_cells(image, keys, name, self.swap)
            for intensity in self.intensities:
                image = intensity(image, keys, f"{name} appearance", self.context.spacing)
            size = unet.fitting_size(self.network, image.shape[2:])
            return image if list(image.shape[2:]) == size else resize(image, size)

    def _embed(self, images: list[Tensor]) -> Embedded:
        """Views of one size through network and heads."""
        features = unet.encode(self.network, torch.cat(images))
        levels = unet.decode(self.network, features, use_skips=self.skips)
        pairs = [head(level) for head, level in zip(self.heads, levels, strict=True)]
        views = len(images)
        embedding, prediction = (
            [one.unflatten(0, (views, -1)) for one in kind] for kind in zip(*pairs, strict=True)
        )
        return Embedded(levels, embedding, prediction)

    def _levels(self, keys: Tensor, count: int) -> Tensor:
        """Drawn levels as weights: (count, L, B), one 1 among the levels of a sample."""
        drawn = [generator(key, "levels").integers(len(self.heads), size=count) for key in keys]
        number = torch.from_numpy(np.stack(drawn, 1))  # (count, B)
        return functional.one_hot(number, len(self.heads)).movedim(-1, 1).float()

    def _compare(self, views: Embedded, chosen: Tensor, shift: int = 0) -> Tensor:
        """Loss of the two global views on the chosen levels (L, B).

        With a shift the second view is that of another sample.
        """
        losses = [
            symmetric_loss(p[0], z[0], p[1].roll(shift, 0), z[1].roll(shift, 0))
            for p, z in zip(views.prediction, views.embedding, strict=True)
        ]  # L times (B,)
        return (torch.stack(losses) * chosen).sum(0).mean()

    def _local(self, whole: Embedded, local: Embedded, chosen: Tensor) -> Tensor:
        """Mean over all pairs of a local and a global view.

        Args:
            whole: the global views.
            local: V local views.
            chosen: levels (V, L, B); each local view has its own.
        """
        losses = [
            symmetric_loss(p[:, None], z[:, None], p_g, z_g).mean(1)
            for p, z, p_g, z_g in zip(
                local.prediction, local.embedding, whole.prediction, whole.embedding, strict=True
            )
        ]  # L times (V, B), the mean over the two global views
        return (torch.stack(losses, 1) * chosen).sum(1).mean()

    def _level_reconstruction(self, whole: Embedded, target: Tensor, chosen: Tensor) -> Tensor:
        found = [
            head.reconstruct(level[: len(target)], target.shape[2:])  # type: ignore[operator]
            for head, level in zip(self.heads, whole.levels, strict=True)
        ]
        weights = chosen.reshape(*chosen.shape, *[1] * (target.ndim - 1))
        return reconstruction_loss((torch.stack(found) * weights).sum(0), target)

    @torch.no_grad()
    def _metrics(
        self, task: Corrupted, whole: Embedded, chosen: Tensor, fading: Tensor, comparisons: int
    ) -> dict[str, Tensor]:
        """The siamese part learns when `global_loss` lies below `mismatched_loss`, which compares
        views of different samples; at collapse both are -1."""
        terms = trivial_losses(task.target, task.image, task.weight)
        deepest = whole.embedding[0].detach().flatten(0, 1)
        return {
            **terms,
            "collapse_loss": terms["collapse_loss"] * (1 + fading) - comparisons,
            "mismatched_loss": self._compare(whole, chosen, shift=1),
            "embedding_std": metrics.embedding_std(deepest),
            "effective_rank": metrics.effective_rank(deepest),
        }
