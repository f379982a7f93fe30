"""CPC: predict pieces of an image from the pieces above them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional

from nnssl.common import distributed
from nnssl.common.checks import Fraction, Positive
from nnssl.losses.classification import classify
from nnssl.losses.contrastive import NoSignalError
from nnssl.modules import unet
from nnssl.modules.cluster_metrics import PICTURES, take_middle_slice
from nnssl.modules.panels import Panel, Row
from nnssl.objectives.base import Batch, Context
from nnssl.objectives.pieces import EMBEDDING, ClassificationObjective, PiecesObjective
from nnssl.views.pieces import PieceGrid, cut_pieces, plan_pieces, standardise
from nnssl.views.randomness import generator

HIDDEN = 256  # of the recurrent network


class CPCObjective(PiecesObjective):
    r"""Contrastive predictive coding: context from above, and which piece lies below.

    .. math:: L = -\frac{1}{Q} \sum_q \ln \frac{e^{\cos(W_{k(q)} g_q, c_q) / \tau}}
        {\sum_{q'} e^{\cos(W_{k(q)} g_q, c_{q'}) / \tau}}

    c are embeddings of overlapping pieces. Rows of pieces are counted along the axis that has most
    (the first of them), columns are all places on the other axes. g is the last state of a GRU that
    reads an inverted pyramid from its top row to its tip: the piece of a column in row e, and in
    every row above that all pieces one column further to all sides. :math:`W_k g` predicts the
    piece of the same column in the k-th row below that shares no voxel with the tip. The Q
    candidates of every prediction are the pieces below of all columns, rows, images and ranks: a
    network that cannot tell them apart has the loss ln Q.

    `binary` asks, for a true column below and a false one (another column or image of the step),
    whether it is the right one: :math:`\ln 2` at collapse.

    Reference: van den Oord, Li, Vinyals, *Representation learning with contrastive predictive
    coding*, arXiv:1807.03748; in 3D Taleb et al., *3D self-supervised methods for medical imaging*,
    NeurIPS 2020, arXiv:2006.03829.

    Differs from the paper: cosines over a temperature; any patch. Differs from Taleb's code, whose
    loss is `binary`: pieces move in their windows instead of being cropped and padded with zeros,
    and have their own contrast; pieces of 3D overlap too; beyond the rim the pyramid holds zeros,
    there mirrored pieces in 3D; AdamW instead of Adam. From both: embeddings are normalised over
    the batch (else the loss stayed at its collapse value), and the trainer draws patches near the
    middle of the volume (from anywhere, nothing was learned in the first hundred steps).

    Shapes: view (B, C, *S); embeddings (B, N, D).

    Args:
        loss: whether the right piece is chosen among all (`info_nce`), or each is judged alone.
        pieces: most pieces per axis; fewer where they would be too small for the network.
        overlap: share of a window that neighbours share.
        jitter: share of a window by which a piece is smaller, and in which it moves.
        temperature: divisor of the cosine, for `info_nce`.
    """

    least_samples = 6
    validated = ("accuracy",)
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {"accuracy": ("accuracy", "chance")}
    default_views = ClassificationObjective.default_views

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        loss: Literal["info_nce", "binary"] = "info_nce",
        pieces: Annotated[int, Interval(ge=3, le=16)] = 5,
        overlap: Annotated[float, Interval(ge=0, lt=1)] = 0.5,
        jitter: Fraction = 0.1,
        temperature: Positive = 0.1,
    ) -> None:
        super().__init__(network, context)
        self.loss, self.temperature = loss, temperature
        knobs = {"pieces": pieces, "overlap": overlap, "jitter": jitter}
        self.grid = self.plan(network, context.patch_size, knobs)
        self._used, *tables = plan_pyramids(self.grid)  # pieces are placed on the CPU
        self.pyramid: Tensor
        self.below: Tensor
        for name, table in zip(("pyramid", "below"), tables, strict=True):
            self.register_buffer(name, table, persistent=False)
        self.normalise = nn.BatchNorm1d(EMBEDDING, affine=False)
        self.gru = nn.GRU(EMBEDDING, HIDDEN, batch_first=True)
        self.predict = nn.Linear(HIDDEN, self.below.shape[1] * EMBEDDING)

    @classmethod
    def count_inputs(
        cls, network: nn.Module, size: Sequence[int], knobs: Mapping[str, Any]
    ) -> float:
        """All windows, or what their pieces are resampled to, whichever is more."""
        pieces, overlap = knobs["pieces"], knobs["overlap"]
        windows = float((pieces / (pieces - (pieces - 1) * overlap)) ** len(size))
        return max(windows, super().count_inputs(network, size, knobs))

    @classmethod
    def plan(cls, network: nn.Module, size: Sequence[int], knobs: Mapping[str, Any]) -> PieceGrid:
        least = unet.total_stride(network)
        return plan_overlapping(size, knobs["pieces"], least, knobs["overlap"], knobs["jitter"])

    def describe(self) -> str:
        (columns, rows), length = self.below.shape, self.pyramid.shape[1]
        return f"{self.grid}; {columns} pyramids of {length} pieces, {rows} to predict below each"

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        predictions, targets = self._predict(self._cut(batch))
        if self.loss == "info_nce":
            logits, right = self._compare(predictions.flatten(0, 1), targets.flatten(0, 1))
        else:
            logits, right = self._judge(predictions, targets, batch["key"][0])
        return classify(logits, right)

    @torch.no_grad()
    def illustrate(self, batch: Batch) -> dict[str, Panel]:
        """`predicted`: above the right pieces of some predictions, under each the chosen one."""
        pieces = self._cut(batch)
        predictions, targets = (rows.flatten(0, 1) for rows in self._predict(pieces))
        chosen = self._compare(predictions, targets)[0].argmax(1)
        shown = torch.linspace(0, len(chosen) - 1, PICTURES, device=chosen.device).long()
        below = pieces[:, self.below, 0].flatten(0, 2)  # (Q, *S)
        rows = {"right piece": shown, "chosen piece": chosen[shown]}
        each = [Row(name, take_middle_slice(below[which])) for name, which in rows.items()]
        return {"predicted": Panel(each)}

    def _cut(self, batch: Batch) -> Tensor:
        """The pieces that are seen, (B, U, C, *S)."""
        begins = self.grid.draw_begins(batch["key"], "cpc")[:, self._used]
        return standardise(cut_pieces(batch["views"]["global_0"].image, begins, self.grid.side))

    def _predict(self, pieces: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and true embeddings of the pieces below each column, (B * M, K, D) float32."""
        codes = self.embed(pieces)  # (B, U, D)
        with torch.autocast(codes.device.type, enabled=False):
            codes = self.normalise(codes.float().flatten(0, 1)).view_as(codes)
            rimmed = functional.pad(codes, (0, 0, 0, 1))
            _, state = self.gru(rimmed[:, self.pyramid].flatten(0, 1))  # of (B * M, L, D)
            predictions = self.predict(state[0]).unflatten(1, (-1, EMBEDDING))
            targets = codes[:, self.below].flatten(0, 1)
            return functional.normalize(predictions, dim=-1), functional.normalize(targets, dim=-1)

    def _compare(self, predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (Q, Q of all ranks) of this rank's predictions, and which candidate is right."""
        candidates = distributed.all_gather(targets)
        right = torch.arange(len(targets), device=targets.device)
        with torch.autocast(targets.device.type, enabled=False):
            scores = predictions @ candidates.T / self.temperature
        return scores, right + distributed.local_rows(len(targets))[0]

    def _judge(self, predictions: Tensor, targets: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (2 B M, 2) of false and true, for each column itself and for a false one."""
        if len(targets) == 1:
            raise NoSignalError("cpc: found one column of pieces, allowed are two or more a step")
        shift = int(generator(key, "cpc negatives").integers(1, len(targets)))
        both = torch.stack([targets.roll(shift, 0), targets])  # (2, B * M, K, D)
        scores = (predictions * both).sum(-1).mean(-1) / self.temperature
        true = torch.arange(2, device=scores.device).repeat_interleave(len(targets))
        return torch.stack([torch.zeros_like(scores), scores], -1).flatten(0, 1), true


def plan_overlapping(
    size: Sequence[int], pieces: int, least: Sequence[int], overlap: float, jitter: float
) -> PieceGrid:
    """The grid of `plan_pieces`; windows lose the voxels by which rounding made them overlap more.

    So the fewest rows are left out between the pyramid and what it predicts.
    """
    counts = (1, *range(3, pieces + 1))
    grid = plan_pieces(size, counts, least, overlap=overlap, jitter=jitter)
    steps = math.ceil(1 / (1 - overlap) - 1e-9)  # from a window to the next that is clear of it
    pairs = zip(grid.window, grid.step, strict=True)
    excess = [max(0, window - steps * step) if step else 0 for window, step in pairs]
    window, side = (
        tuple(length - more for length, more in zip(lengths, excess, strict=True))
        for lengths in (grid.window, grid.side)
    )
    return replace(grid, window=window, side=side)


def plan_pyramids(grid: PieceGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Which pieces are seen, which of them are a column's context, and which are predicted.

    Returns:
        Numbers in the grid of the U pieces that are seen; the places (M, L) among them of the
        pyramid above each of M columns, U beyond the rim; and those (M, K) of the pieces below.

    Raises:
        ValueError: no row lies below the tip without sharing voxels with it.
    """
    axis = grid.counts.index(max(grid.counts))
    rows, tip = grid.counts[axis], max(0, grid.counts[axis] // 2 - 1)
    first = tip + math.ceil(grid.window[axis] / grid.step[axis])
    if first >= rows:
        raise ValueError(
            f"pieces: found {grid}, of which none lies below the pyramid without sharing voxels "
            "with it. Lower objective.overlap, or choose a larger patch (training.patch_size)."
        )
    number = np.moveaxis(np.arange(grid.pieces).reshape(grid.counts), axis, 0)
    rimmed = np.pad(
        number, [(0, 0), *[(tip, tip)] * (number.ndim - 1)], constant_values=grid.pieces
    )
    pyramids = []
    for column in np.ndindex(number.shape[1:]):
        levels = []
        for row in range(tip + 1):
            places = (slice(c + row, c + 2 * tip - row + 1) for c in column)
            levels.append(rimmed[row][tuple(places)].ravel())
        pyramids.append(np.concatenate(levels))
    below = number[first:].reshape(rows - first, -1).T  # (M, K)
    used = np.setdiff1d([*np.ravel(pyramids), *np.ravel(below)], grid.pieces)
    tables = (used, np.searchsorted(used, pyramids), np.searchsorted(used, below))
    return tuple(torch.from_numpy(table) for table in tables)  # type: ignore[return-value]
