"""What objectives share that look at pieces of a view: one pass of the encoder, and questions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnssl.losses.classification import classify, count_confusions
from nnssl.modules import unet
from nnssl.modules.cluster_metrics import PICTURES, take_middle_slice
from nnssl.modules.grids import resize
from nnssl.modules.heads import MLP, SpatialPooling
from nnssl.modules.panels import Panel, Row
from nnssl.objectives.base import Batch, Context, Objective
from nnssl.views.pieces import PieceGrid, cut_pieces, plan_pieces, standardise

HIDDEN = 512
EMBEDDING = 128


class PiecesObjective(Objective):
    """Embeds pieces of an image (or one whole view) in one pass of the encoder.

    Pieces are folded into the batch, and resampled where the strides do not divide them or where
    they would keep less than two bottleneck cells per axis. The head reads a coarse grid of the
    bottleneck: InstanceNorm leaves little to an average over space.
    """

    pooling_cells: ClassVar[int] = 2  # per axis

    def __init__(self, network: nn.Module, context: Context) -> None:
        super().__init__(network, context)
        width, dimension = unet.output_channels(network)[-1], len(context.patch_size)
        self.pool = SpatialPooling(width, "grid", dimension, self.pooling_cells)
        self.project = MLP(self.pool.out_features, HIDDEN, EMBEDDING, normalisation="layer")

    @classmethod
    def plan(
        cls, network: nn.Module, size: Sequence[int], knobs: Mapping[str, Any]
    ) -> PieceGrid | None:
        """The grid over a view of this size; None: it is seen as a whole."""
        return None

    @classmethod
    def count_inputs(
        cls, network: nn.Module, size: Sequence[int], knobs: Mapping[str, Any]
    ) -> float:
        """More than 1 where pieces overlap, or are made larger for the network."""
        grid = cls.plan(network, size, knobs)
        if grid is None:
            return 1.0
        return max(1.0, grid.pieces * prod(unet.fitting_size(network, grid.side)) / prod(size))

    def embed(self, pieces: Tensor) -> Tensor:
        """(B, N, C, *S) to (B, N, D)."""
        images, size = pieces.flatten(0, 1), pieces.shape[3:]
        fitting = unet.fitting_size(self.network, size)
        if list(size) != fitting:
            images = resize(images, fitting)
        features = unet.encode(self.network, images)[-1]
        return self.project(self.pool(features)).unflatten(0, pieces.shape[:2])


class ClassificationObjective(PiecesObjective):
    r"""A question about pieces whose answer is one of K classes.

    .. math:: L = -\frac{1}{Q} \sum_q \ln \mathrm{softmax}(z_q)_{y_q}

    A subclass cuts the pieces, and makes logits z of their embeddings for every question that it
    asks. A network that cannot tell has the loss ln K.

    Args:
        classes: number K of possible answers.
        joined: embeddings that the head reads at once.
        scores: outputs of the head; None: one per class.
    """

    validated = ("accuracy",)
    audited = True
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {"accuracy": ("accuracy", "chance")}
    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "global": {"count": 1, "rotation": 10.0, "scale": (0.9, 1.1), "shift": 0.0, "flip": 0.0}
    }

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        classes: int,
        joined: int = 1,
        scores: int | None = None,
    ) -> None:
        super().__init__(network, context)
        self.classes = classes
        self.head = MLP(joined * EMBEDDING, HIDDEN, scores or classes, normalisation="layer")

    def cut(self, batch: Batch) -> Tensor:
        """The pieces that the encoder sees, (B, N, C, *S)."""
        raise TypeError(f"{type(self).__name__} does not say which pieces it sees")

    def answer(self, codes: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (Q, K) of embeddings (B, N, D) for all questions, and right answers (Q,) int64."""
        raise TypeError(f"{type(self).__name__} asks no question")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return classify(*self.answer(self.embed(self.cut(batch)), batch))

    def compare(self, target: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, int]:
        """What the confusion is drawn of: right classes, answers, and the number of classes."""
        return target, answer, self.classes

    @torch.no_grad()
    def illustrate(self, batch: Batch) -> dict[str, Panel]:
        """`pieces` of some images as the encoder sees them, and `confusion` of the batch: in a row
        for each right class the share of each answer."""
        pieces = self.cut(batch)
        logits, target = self.answer(self.embed(pieces), batch)
        table = count_confusions(*self.compare(target, logits.argmax(1)))
        shown = pieces[:PICTURES, :, 0].float()
        middle = take_middle_slice(shown.flatten(0, 1)).unflatten(0, shown.shape[:2])
        names = batch["identifier"][:PICTURES]
        rows = [Row(name, images) for name, images in zip(names, middle, strict=True)]
        numbers = [f"piece {number}" for number in range(1, 1 + middle.shape[1])]
        confusion = Row("right class (down)", table[None], "share of the answers")
        return {
            "pieces": Panel(rows, numbers),
            "confusion": Panel([confusion], ["answered class (across)"]),
        }


class PuzzleObjective(ClassificationObjective):
    """Questions about the pieces of a grid over the view.

    Against shortcuts, pieces move in their windows, windows have gaps between them, and every piece
    has its own contrast, so that neither lines that go on from one piece to the next, nor the
    brightness tell the answer.

    Args:
        gap: voxels between windows, as a share of a window.
        jitter: share of a window by which a piece is smaller, and in which it moves.
    """

    grid: PieceGrid

    @classmethod
    def plan(cls, network: nn.Module, size: Sequence[int], knobs: Mapping[str, Any]) -> PieceGrid:
        counts, least = cls.list_counts(knobs), unet.total_stride(network)
        return plan_pieces(size, counts, least, overlap=-knobs["gap"], jitter=knobs["jitter"])

    @classmethod
    def list_counts(cls, knobs: Mapping[str, Any]) -> Collection[int]:
        """Numbers of pieces that an axis may have."""
        raise TypeError(f"{cls.__name__} does not say how many pieces it needs")

    def cut(self, batch: Batch) -> Tensor:
        begins = self.grid.draw_begins(batch["key"], "puzzle")
        return standardise(cut_pieces(batch["views"]["global_0"].image, begins, self.grid.side))
