"""Clustering of dense tokens: predict, in one view, the code of the same place in another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import permutations
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import Module, ModuleList, functional

from nnssl.common.checks import Count, Fraction, Positive, Whole
from nnssl.losses.clustering import cluster_shares, sinkhorn, swapped_prediction
from nnssl.modules import cluster_metrics, metrics, unet
from nnssl.modules.grids import align, find_shared
from nnssl.modules.heads import MLP, Normalisation, Prototypes
from nnssl.modules.memory import MemoryBank, MomentumCopy, rise_to_one
from nnssl.modules.panels import Panel, Row
from nnssl.modules.tissue import weigh_tokens, weigh_voxels
from nnssl.objectives.base import Batch, Context, Objective
from nnssl.views import View

TOKEN_STRIDE = 8  # voxels per token and axis by default, as in the thesis
BANK_STEPS = 8  # a full memory bank holds tokens of at least so many steps


class ClusteringObjective(Objective):
    r"""Swapped prediction of cluster codes between overlapping views, token by token.

    .. math:: \mathcal{L} = \frac{1}{P} \sum_{(a, b)} \frac{-\sum_n w_n \sum_k
        \tilde q^{a \to b}_{nk} \ln \mathrm{softmax}_k (\cos(z^b_n, c_k) / \tau)}{\sum_n w_n}

    over the P ordered pairs of views; z are the embeddings of the tokens (cells of an encoder
    stage), c the prototypes. The codes q come from a Sinkhorn-Knopp iteration over the tokens of
    all views and ranks, which gives every prototype the same share; :math:`\tilde q^{a \to b}` are
    those of view a, read at the places of b's tokens through the views' matrices. w is 0 outside
    the overlap and outside the volume, 1 for tissue, `background_weight` for the rest. At collapse
    all codes are equal and the loss is ln K.

    Reference: Caron et al., *Unsupervised learning of visual features by contrasting cluster
    assignments* (SwAV), NeurIPS 2020, arXiv:2006.09882; on dense tokens of 3D crops the thesis
    code radioSSL, task `cluster_patch`.

    Differs from the paper: SwAV clusters whole images; here every token has a code (as in the
    thesis). One iteration balances the tokens of both views together, in SwAV each view alone;
    prototypes learn from the first step on; AdamW instead of SGD; target network and memory bank.
    Differs from the thesis' code: the codes stay in the order of their tokens (there a reshape
    scrambles them); the views are aligned by linear interpolation, with their rotation and flips,
    instead of resizing integer boxes; predictions are cosines over a temperature; the projector has
    two layers and normalises, there it is one linear map; the cross entropy is not divided by K;
    background counts less; views change in geometry and intensity.

    Shapes: views (B, C, *S); tokens (V, B, *T, K) scores, T cells per axis.

    Args:
        prototypes: number K of clusters.
        temperature: divisor of the cosines of predictions; smaller ones ask for surer predictions.
        epsilon: smoothness of the codes; towards 0 they become hard.
        iterations: rounds of the Sinkhorn-Knopp iteration; more give prototypes more equal shares.
        codes_from: whether the codes balance the tokens of this batch alone, or with a memory bank.
        memory_bank: tokens that the bank holds.
        momentum: of a target network that gives the codes, 1 at the end of the training; null: the
            online network gives them.
        stage: encoder stage whose cells are the tokens, 0 the finest, and the last that is trained;
            null: the deepest with at most 8 voxels per token and axis.
        hidden_features: width of the projector's hidden layers.
        embedding_features: D, the length of an embedding.
        projector_layers: linear layers of the projector; 1 is a single linear map.
        normalisation: what follows the projector's hidden layers.
        background_weight: weight of a token without tissue, in the loss and in the balance.
        min_overlap: share of each other that two views must see, else the pair does not count.
    """

    best = None
    shares = True
    validated = ("accuracy",)
    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {"global": {"count": 2}}

    def __init__(
        self,
        network: Module,
        context: Context,
        *,
        prototypes: Annotated[int, Ge(2)] = 50,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.05,
        iterations: Count = 3,
        codes_from: Literal["batch", "memory_bank"] = "batch",
        memory_bank: Count = 4096,
        momentum: Fraction | None = None,
        stage: Whole | None = None,
        hidden_features: Count = 256,
        embedding_features: Count = 64,
        projector_layers: Count = 2,
        normalisation: Normalisation = "batch",
        background_weight: Fraction = 0.1,
        min_overlap: Fraction = 0.3,
    ) -> None:
        super().__init__(network, context)
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.momentum, self.background_weight = momentum, background_weight
        self.min_overlap = min_overlap
        self.stage = _choose_stage(network, stage)
        self.projector = MLP(
            unet.output_channels(network)[self.stage],
            hidden_features,
            embedding_features,
            layers=projector_layers,
            normalisation=normalisation,
        )
        self.prototypes = Prototypes(embedding_features, prototypes)
        self.cluster_count = prototypes
        self.target: Any = None
        if momentum is not None:
            online = (self.network, self.projector, self.prototypes)
            self.target = ModuleList(MomentumCopy(module) for module in online)
        if codes_from == "memory_bank":
            self.bank = MemoryBank(memory_bank, embedding_features + 1)  # the last is the weight
        self.codes_from = codes_from
        self.change = cluster_metrics.ChangeRate()

    @property
    def trained(self) -> unet.Trained:
        return unet.Trained(encoder_stages=self.stage + 1, decoder_levels=0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views = list(batch["views"].values())
        tokens = self.encode_views(batch)[self.stage]  # (V*B, F, *T)
        cells = list(tokens.shape[2:])
        embedding: Tensor = self.projector(_to_rows(tokens))  # (N, D)
        scores: Tensor = self.prototypes(embedding)  # (N, K)
        weights = self._weights(batch, cells)  # (V, B, *T)
        codes = self._codes(views, embedding, scores, weights.flatten())  # (N, K)
        maps = [_to_maps(x, len(views), cells) for x in (scores, codes)]  # (V, B, K, *T) each
        losses, agreements, shares = [], [], []
        for a, b in permutations(range(len(views)), 2):
            code = align(maps[1][a], views[a].matrix, views[b].matrix)
            seen = find_shared(views[a].matrix, views[b].matrix, cells, self.min_overlap)
            counted = (weights[b] * seen).flatten()
            pair = _to_rows(maps[0][b]), _to_rows(code)
            losses.append(swapped_prediction(pair[0] / self.temperature, pair[1], counted))
            agreements.append(_measure_agreement(*pair, counted))
            shares.append(seen.mean())
        terms = {
            "accuracy": torch.stack(agreements).mean(),
            "overlap": torch.stack(shares).mean(),
            **self._metrics(embedding.detach(), scores.detach(), codes, weights.flatten()),
        }
        return {"loss": torch.stack(losses).mean(), **terms}

    def after_step(self, batch: Batch, progress: float) -> None:
        if self.momentum is not None:
            for copy in self.target:
                copy.update(rise_to_one(self.momentum, progress))
        if self.codes_from == "memory_bank":
            self.bank.enqueue(self._newest)
        self.change.after_step(next(iter(batch["views"].values())).image, self.clusters)

    def clusters(self, image: Tensor) -> Tensor:
        """Nearest prototype of every voxel's token, (B, *S) int64."""
        with metrics.evaluating(self, self.network):
            features = unet.encode(self.network, image)[self.stage]
            scores = self.prototypes(self.projector(_to_rows(features)))
            tokens = scores.argmax(1).reshape(len(image), *features.shape[2:])
        return cluster_metrics.resize_maps(tokens, image.shape[2:])

    def illustrate(self, batch: Batch) -> dict[str, Panel]:
        """`clusters`: two rows per view, the image and its clusters in fixed colours."""
        rows = []
        for name, view in batch["views"].items():
            image = view.image[: cluster_metrics.PICTURES]
            painted = cluster_metrics.paint(self.clusters(image), len(self.prototypes.weight))
            rows += [Row(name, cluster_metrics.shade(image)), Row("cluster", painted)]
        return {"clusters": Panel(rows, batch["identifier"])}

    @torch.no_grad()
    def _codes(
        self, views: list[View], embedding: Tensor, scores: Tensor, weights: Tensor
    ) -> Tensor:
        prototypes: Module = self.prototypes
        if self.target is not None:
            network, projector, prototypes = (copy.module for copy in self.target)
            images = torch.cat([view.image for view in views])
            embedding = projector(_to_rows(unet.encode(network, images)[self.stage]))
            scores = prototypes(embedding)
        shared: dict[str, Tensor] = {}
        if self.codes_from == "memory_bank":
            self._remember(embedding, weights)
            kept = self.bank.read()
            shared = {"shared_scores": prototypes(kept[:, :-1]), "shared_weights": kept[:, -1]}
        return sinkhorn(
            scores.detach(),
            epsilon=self.epsilon,
            iterations=self.iterations,
            weights=weights,
            **shared,
        )

    def _remember(self, embedding: Tensor, weights: Tensor) -> None:
        """Evenly spaced tokens of this step, for the bank: few enough that it spans steps."""
        most = max(1, len(self.bank.values) // BANK_STEPS)
        chosen = slice(None, None, math.ceil(len(embedding) / most))
        directions = functional.normalize(embedding[chosen].detach().float(), dim=1)
        self._newest = torch.cat([directions, weights[chosen, None]], 1)

    @torch.no_grad()
    def _weights(self, batch: Batch, cells: list[int]) -> Tensor:
        """(V, B, *T)."""
        voxels = weigh_voxels(batch, self.background_weight)
        weights = [
            weigh_tokens(voxels, view.matrix, view.image.shape[2:], cells)
            for view in batch["views"].values()
        ]
        return torch.stack(weights)

    @torch.no_grad()
    def _metrics(
        self, embedding: Tensor, scores: Tensor, codes: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        predicted = (scores / self.temperature).softmax(1)
        total = weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
        shares = cluster_shares(scores.argmax(1), scores.shape[1], weights)
        return {
            **cluster_metrics.describe_use(shares),
            "prediction_entropy": (cluster_metrics.entropy(predicted) * weights).sum() / total,
            "code_entropy": (cluster_metrics.entropy(codes) * weights).sum() / total,
            "embedding_std": metrics.embedding_std(embedding),
            "cluster_change": scores.new_full((), self.change.value),
            "collapse_loss": scores.new_full((), math.log(scores.shape[1])),
        }


def _to_maps(rows: Tensor, views: int, cells: list[int]) -> Tensor:
    """Rows (V * B * T, K) as maps (V, B, K, *T): tokens stay in their order, K moves."""
    shape = (views, -1, *cells, rows.shape[1])
    return rows.reshape(shape).movedim(-1, 2)


def _to_rows(maps: Tensor) -> Tensor:
    """Maps (B, K, *T) as rows (B * T, K)."""
    return maps.movedim(1, -1).flatten(0, -2)


@torch.no_grad()
def _measure_agreement(scores: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    right = (scores.argmax(1) == codes.argmax(1)).float()
    return (right * weights).sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)


def _choose_stage(network: Module, stage: int | None) -> int:
    """The stage, by default the deepest with at most `TOKEN_STRIDE` voxels per token and axis."""
    if stage is not None:
        unet.check_stage(network, stage)
        return stage
    totals = torch.tensor(unet.strides(network)).cumprod(0).amax(1)
    return max(0, int((totals <= TOKEN_STRIDE).sum()) - 1)
