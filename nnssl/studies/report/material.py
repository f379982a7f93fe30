"""What the figures of a report are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from nnssl.studies.analysis.comparisons import Comparison
from nnssl.studies.run.spec import SCRATCH


@dataclass(frozen=True)
class Material:
    """What the figures are drawn from.

    Attributes:
        table: the long table.
        comparisons: effects against scratch.
        curves: (method, schedule, budget) -> one list of Dice per epoch for every repetition.
        probes: method -> probe Dice after pre-training.
        hours: method -> hours of one pre-training.
        unit: of the budgets.
    """

    table: pd.DataFrame
    comparisons: Sequence[Comparison]
    curves: dict[tuple[str, str, float], list[list[float]]]
    probes: dict[str, float]
    hours: dict[str, float]
    unit: str

    @property
    def main(self) -> pd.DataFrame:
        return self.table[self.table["role"] == "main"]

    @property
    def twins(self) -> list[Comparison]:
        """Comparisons at equal schedule."""
        return [each for each in self.comparisons if each.baseline == "equal schedule"]

    @property
    def methods(self) -> list[str]:
        found = [method for method in dict.fromkeys(self.table["method"]) if method != SCRATCH]
        return [SCRATCH, *found] if SCRATCH in set(self.table["method"]) else found
