"""Jigsaw: tell in which order the pieces of an image were laid out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional

from nnssl.common.checks import Fraction
from nnssl.modules.permutations import choose_permutations, least_distance
from nnssl.objectives.base import Batch, Context
from nnssl.objectives.pieces import PuzzleObjective
from nnssl.views.randomness import generator

QUESTIONS = 8  # permutations of each image in a step


class JigsawObjective(PuzzleObjective):
    r"""Classify the permutation of an image's pieces: P classes, far from each other.

    .. math:: L = -\frac{1}{B Q} \sum_b \sum_q \ln \mathrm{softmax}(z_{bq})_{y_{bq}}, \quad
        z_{bqp} = \sum_{i=1}^N a(c_{b n}, \bar c_b)_{\pi_p(i)}, \quad n = \pi_{y_{bq}}(i)

    Piece n lies at place i of question q. The head a scores, for each piece, all N cells of the
    grid from which it may come, knowing its embedding c and the mean of all; the logit of a
    permutation is the sum of what it claims of every place. The permutations stand in the
    checkpoint. The encoder sees every piece alone, so that it needs to be asked once for all Q
    permutations of an image.

    Reference: Noroozi, Favaro, *Unsupervised learning of visual representations by solving jigsaw
    puzzles*, ECCV 2016, arXiv:1603.09246; in 3D Taleb et al., *3D self-supervised methods for
    medical imaging*, NeurIPS 2020, arXiv:2006.03829.

    Differs from the paper: a fully connected layer reads all embeddings joined there and learns of
    every permutation alone; with it the loss stayed at ln P for the first hundreds of steps on
    cardiac MR. Several permutations of each image; any patch (fewer pieces where it is
    flat); a gap beside the jitter; permutations for 3D are as far apart as those for 2D; AdamW in
    the place of Adam.

    Shapes: view (B, C, *S).

    Args:
        pieces: per axis, where the patch is long enough.
        permutations: P; fewer where the pieces have no more.
    """

    permutations: Tensor

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        pieces: Annotated[int, Ge(2)] = 3,
        permutations: Annotated[int, Ge(2)] = 100,
        gap: Fraction = 0.1,
        jitter: Fraction = 0.1,
    ) -> None:
        knobs = {"pieces": pieces, "gap": gap, "jitter": jitter}
        grid = self.plan(network, context.patch_size, knobs)
        table = choose_permutations(permutations, grid.pieces)
        super().__init__(network, context, len(table), joined=2, scores=grid.pieces)
        self.grid = grid
        self.register_buffer("permutations", table)

    @classmethod
    def list_counts(cls, knobs: Mapping[str, Any]) -> Collection[int]:
        return range(1, knobs["pieces"] + 1)

    def describe(self) -> str:
        return (
            f"{self.grid}; {self.classes} permutations, of which any two differ at "
            f"{least_distance(self.permutations)} places or more"
        )

    def answer(self, codes: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        draws = min(QUESTIONS, self.classes)
        drawn = [
            generator(key, "jigsaw").choice(self.classes, draws, replace=False)
            for key in batch["key"]
        ]
        target = torch.from_numpy(np.stack(drawn)).to(codes.device, non_blocking=True)  # (B, Q)
        together = codes.mean(1, keepdim=True).expand_as(codes)
        cells = self.head(torch.cat([codes, together], 2).flatten(0, 1)).float()
        cells = cells.unflatten(0, codes.shape[:2])  # (B, N, N)
        return self.score(cells, target).flatten(0, 1), target.flatten()

    def score(self, cells: Tensor, target: Tensor) -> Tensor:
        """Logits of all permutations, (B, Q, P).

        Args:
            cells: score of every piece in every cell, (B, N, N).
            target: permutation that is laid out, (B, Q).
        """
        order = self.permutations[target]  # (B, Q, N), piece at each place
        rows = torch.arange(len(cells), device=cells.device)[:, None, None]
        claims = functional.one_hot(self.permutations).to(cells)  # (P, N, N)
        with torch.autocast(cells.device.type, enabled=False):
            return torch.einsum("bqim,pim->bqp", cells[rows, order], claims)

    def compare(self, target: Tensor, answer: Tensor) -> tuple[Tensor, Tensor, int]:
        """Which piece lies at each place, and which one the answer puts there."""
        table = self.permutations
        return table[target].flatten(), table[answer].flatten(), self.grid.pieces
