"""All that a report is written from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from nnssl.common.files import read_json
from nnssl.nnunet.paths import PROBE_FILE
from nnssl.studies.analysis.comparisons import Arms, Comparison, compare, compare_labels
from nnssl.studies.analysis.labels_saved import LabelsSaved
from nnssl.studies.analysis.table import collect_scores
from nnssl.studies.report.provenance import CellRecord, read_learning_curve, read_records
from nnssl.studies.report.verdict import write_verdict
from nnssl.studies.run.folder import StudyFolder, open_study
from nnssl.studies.run.spec import SCRATCH


@dataclass(frozen=True)
class Findings:
    """What a study has found so far.

    Attributes:
        table: the study's long table.
        labels_saved: by method and schedule.
        records: what is known of every run.
        tolerance: of the surface Dice, mm.
    """

    folder: StudyFolder
    table: pd.DataFrame
    comparisons: list[Comparison]
    labels_saved: dict[tuple[str, str], LabelsSaved]
    records: list[CellRecord]
    tolerance: float

    @property
    def unit(self) -> str:
        """Of the budgets."""
        return self.folder.study.unit

    @property
    def unfinished(self) -> int:
        """Number of runs that are not done."""
        return sum(each.state != "done" for each in self.records)

    @cached_property
    def sentences(self) -> list[str]:
        """The verdict."""
        return write_verdict(self.comparisons, self.unit, self.unfinished, len(self.records))

    @cached_property
    def main(self) -> pd.DataFrame:
        """The part of the table with equal schedules."""
        return self.table[self.table["role"] == "main"]

    @cached_property
    def arms(self) -> Arms:
        return Arms(self.main)

    @property
    def methods(self) -> list[str]:
        """Methods with a score, scratch first."""
        found = list(dict.fromkeys(self.table["method"]))
        return sorted(found, key=lambda method: method != SCRATCH)

    @property
    def at_equal_schedule(self) -> list[Comparison]:
        """Comparisons with scratch that was trained alike."""
        return [each for each in self.comparisons if each.baseline == "equal schedule"]

    @cached_property
    def curves(self) -> dict[tuple[str, str, float], list[list[float]]]:
        """(method, schedule, budget) -> one list of Dice per epoch for every repetition."""
        curves: dict[tuple[str, str, float], list[list[float]]] = {}
        for each in self._finished:
            cell = each.cell
            if cell.kind == "finetune" and cell.budget is not None:
                curve = read_learning_curve(self.folder.fold_folder(cell))
                curves.setdefault((cell.method, cell.schedule, cell.budget), []).append(curve)
        return curves

    @cached_property
    def probes(self) -> dict[str, float]:
        """Method -> probe Dice after pre-training, where the probe was on and read labels."""
        dices: list[tuple[str, float]] = []
        for method, record in self._pretrainings:
            path = self.folder.fold_folder(record.cell) / PROBE_FILE
            encoders = read_json(path).get("encoders", {}) if path.is_file() else {}
            dice = encoders.get("pretrained", {}).get("dice")
            dices += [(method, float(dice))] if isinstance(dice, int | float) else []
        return _average(dices)

    @cached_property
    def hours(self) -> dict[str, float]:
        """Method -> hours of one pre-training."""
        return _average((method, each.hours) for method, each in self._pretrainings if each.hours)

    @property
    def _finished(self) -> list[CellRecord]:
        return [e for e in self.records if e.cell.role == "main" and e.state == "done"]

    @property
    def _pretrainings(self) -> list[tuple[str, CellRecord]]:
        """Finished pre-trainings, each with a method whose finished fine-tuning needs it."""
        needs = {each.cell.needs: each.cell.method for each in self._finished}
        return [(needs[e.cell.id], e) for e in self._finished if e.cell.id in needs]


def collect_findings(folder: str | Path, tolerance: float, workers: int | None) -> Findings:
    """Reads a study's folder, and measures what was not measured yet."""
    study = open_study(folder)
    table = collect_scores(study, tolerance, workers)
    records = read_records(study)
    return Findings(study, table, compare(table), compare_labels(table), records, tolerance)


def _average(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    of_method: dict[str, list[float]] = {}
    for method, value in values:
        of_method.setdefault(method, []).append(value)
    return {method: sum(each) / len(each) for method, each in of_method.items()}
