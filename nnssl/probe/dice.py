"""Per-voxel linear classification with frozen features: fitted on some cases, Dice on others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nnssl.probe.features import Block
from nnssl.probe.linear_probe import LinearProbe, RidgeSums, balanced
from nnssl.probe.volumes import Examples

RIDGE = 1e-2


def weigh_classes(counts: Tensor) -> Tensor:
    """Every structure counts the same, and the background as much as all of them together.

    Args:
        counts: (K,) examples per class, the background first.

    Returns:
        (K,) weight of one example.
    """
    weights = balanced(counts)
    weights[0] *= int((counts[1:] > 0).sum())
    return weights


class Fit:
    """One classifier per draw, from one pass over the cases.

    Args:
        examples: voxels of all cases of all draws.
        draws: cases of each draw.
        device: where the sums are kept.
    """

    def __init__(
        self, examples: Examples, draws: Sequence[Collection[str]], device: torch.device
    ) -> None:
        self.examples, self.draws = examples, draws
        self._device = torch.device("cpu") if device.type == "mps" else device  # float64
        self._sums: list[RidgeSums] = []

    def add(self, case: str, block: Block) -> None:
        """Takes one block of a case into the draws that hold the case."""
        if not self._sums:
            weights = (weigh_classes(self.examples.count(draw)) for draw in self.draws)
            self._sums = [RidgeSums(block.features, w.to(self._device)) for w in weights]
        x, y = self.examples.read_features(case, block)
        for sums, draw in zip(self._sums, self.draws, strict=True):
            if case in draw:
                sums.add(x, y)

    def solve(self) -> list[LinearProbe]:
        """The classifiers, one per draw."""
        return [sums.solve(RIDGE) for sums in self._sums]


class Scorer:
    """Applies several classifiers of K classes at once."""

    def __init__(self, probes: Sequence[LinearProbe]) -> None:
        self.classes = len(probes[0].bias)
        self._weight = torch.cat([probe.weight for probe in probes])
        self._bias = torch.stack([probe.bias for probe in probes])[:, :, None, None, None]

    def score(self, blocks: Iterable[Block], labels: Tensor) -> Tensor:
        """Dice (D, K - 1) of one volume.

        Args:
            blocks: features of all its parts.
            labels: (Z, Y, X), -1: left out.
        """
        return compute_dice(torch.stack([self._count(block, labels) for block in blocks]).sum(0))

    def _count(self, block: Block, labels: Tensor) -> Tensor:
        """Voxels per (classifier, label, prediction), (D, K, K), in one block."""
        scores = block.project(self._weight.to(block.stages[0]))  # (D * K, *part)
        scores = scores.unflatten(0, (-1, self.classes)) + self._bias.to(scores)
        found = scores.argmax(1).cpu().flatten(1)  # (D, voxels)
        true = labels[block.where].flatten()
        valid = true >= 0
        pairs = true[valid] * self.classes + found[:, valid]
        counts = [torch.bincount(each, minlength=self.classes**2) for each in pairs]
        return torch.stack(counts).unflatten(1, (self.classes, self.classes))


def compute_dice(confusion: Tensor) -> Tensor:
    """Dice of every class but the background: (..., K, K) to (..., K - 1).

    NaN for a structure that neither the labels nor the prediction have.
    """
    both = confusion.diagonal(dim1=-2, dim2=-1).double()
    total = (confusion.sum(-1) + confusion.sum(-2)).double()
    return (2 * both / total)[..., 1:]


@dataclass(frozen=True)
class DiceTable:
    """Dice of several draws (rows) on several cases.

    Attributes:
        structures: names, without the background.
        cases: case -> (D, K - 1), NaN where a structure is neither there nor found.
    """

    structures: tuple[str, ...]
    cases: Mapping[str, Tensor]

    @property
    def per_draw(self) -> list[float]:
        """Mean over structures of the mean over cases, for each draw."""
        return self._means().nanmean(1).tolist()

    @property
    def mean(self) -> float:
        return float(self._means().nanmean(1).mean())

    @property
    def per_structure(self) -> dict[str, float]:
        """Mean over cases and draws."""
        return dict(zip(self.structures, self._means().nanmean(0).tolist(), strict=True))

    @property
    def per_case(self) -> dict[str, dict[str, float]]:
        """Mean over draws."""
        return {
            case: dict(zip(self.structures, values.nanmean(0).tolist(), strict=True))
            for case, values in self.cases.items()
        }

    def _means(self) -> Tensor:
        """(D, K - 1), over cases."""
        return torch.stack(list(self.cases.values())).nanmean(0)
