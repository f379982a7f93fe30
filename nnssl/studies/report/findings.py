"""All that a study has found, and what may be said of it in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import isnan
from pathlib import Path
from typing import Literal

import pandas as pd

from nnssl.nnunet.paths import PROBE_FILE
from nnssl.nnunet.runs import read_probe
from nnssl.studies.analysis.comparisons import Arms, Comparison, compare, compare_labels
from nnssl.studies.analysis.labels_saved import LabelsSaved
from nnssl.studies.analysis.statistics import LEAST_REPETITIONS, Effect
from nnssl.studies.analysis.table import collect_scores
from nnssl.studies.report.provenance import CellRecord, read_learning_curve, read_records
from nnssl.studies.report.words import is_telling, name_budget
from nnssl.studies.run.folder import StudyFolder, open_study
from nnssl.studies.run.grid import find_stages
from nnssl.studies.run.spec import SCRATCH

ALPHA = 0.05
AGAINST = {
    "equal schedule": "scratch at equal schedule",
    "best own schedule": "scratch with the best of its own schedules",
    "added steps": "scratch with the steps of the pre-training added",
}


def _write_verdict(found: Findings) -> list[str]:
    sentences, comparisons = [], found.comparisons
    if found.unfinished:
        sentences.append(
            f"This study is unfinished: {found.unfinished} of {len(found.runs)} runs are not "
            "done (listed below); all that follows may still change."
        )
    if not comparisons:
        sentences.append("No pair of a pre-trained and a scratch run is finished yet.")
    several = len({each.schedule for each in comparisons}) > 1
    of_arm = groupby(comparisons, key=lambda each: (each.method, each.schedule, each.budget))
    for (method, schedule, budget), rows in of_arm:
        where = f"with {name_budget(budget, found.unit)}" + (f" ({schedule})" if several else "")
        sentences.append(_write_sentence(method, where, list(rows)))
    return [*sentences, *_write_conditions(comparisons)]


def _judge(comparisons: Sequence[Comparison]) -> Literal["gain", "loss", "none", "untested"]:
    """What may be said of one method at one budget, from its comparisons with scratch.

    A gain must be significant over every baseline that was run, a loss under the equal schedule.
    """
    if any(each.effect.p_holm is None for each in comparisons):
        return "untested"
    significant = [each for each in comparisons if (each.effect.p_holm or 0.0) < ALPHA]
    if len(significant) == len(comparisons) and all(e.effect.mean > 0 for e in comparisons):
        return "gain"
    alike = [each for each in significant if each.baseline == "equal schedule"]
    return "loss" if any(each.effect.mean < 0 for each in alike) else "none"


def _write_sentence(method: str, where: str, rows: list[Comparison]) -> str:
    found = _judge(rows)
    if found == "untested":
        return _describe_untested(method, where, rows[0])
    if found == "gain":
        row = min(rows, key=lambda row: row.effect.mean)
        names = [AGAINST[each.baseline] for each in rows]
        hardest = f"the hardest of {len(names)} comparisons ({', '.join(names)})"
        gain = f"{method} gains {row.effect.mean:.3f} Dice over"
        return f"{gain} {hardest if len(names) > 1 else names[0]} {where} {_write_numbers(row)}."
    if found == "loss":
        row = next(row for row in rows if row.baseline == "equal schedule")
        loss = f"{method} lies {-row.effect.mean:.3f} Dice below {AGAINST[row.baseline]}"
        return f"{loss} {where} {_write_numbers(row)}."
    shown = max(rows, key=lambda row: row.effect.p_holm or 0.0)
    return (
        f"No difference between {method} and {AGAINST[shown.baseline]} was shown {where} "
        f"{_write_numbers(shown)}."
    )


def _describe_untested(method: str, where: str, row: Comparison) -> str:
    each = ", ".join(write_signed(value) for value in row.effect.per_repetition)
    count = row.effect.repetitions
    return (
        f"{method} {where}: no claim is made from {count} repetition{'s' * (count != 1)}. "
        f"Paired difference in Dice to {AGAINST[row.baseline]}, repetition by repetition: {each} "
        f"(mean {write_signed(row.effect.mean)})."
    )


def _write_numbers(row: Comparison) -> str:
    effect = row.effect
    return (
        f"(paired difference {write_signed(effect.mean)}, {100 * effect.level:g} % interval "
        f"{write_signed(effect.low)} to {write_signed(effect.high)}, Holm-corrected p "
        f"{write_p(effect.p_holm)}, {effect.repetitions} repetitions)"
    )


def _write_conditions(comparisons: Sequence[Comparison]) -> list[str]:
    """What limits all of the sentences before."""
    notes = []
    if any(row.effect.repetitions < LEAST_REPETITIONS for row in comparisons):
        notes.append(
            f"Arms with fewer than {LEAST_REPETITIONS} repetitions are described and not tested."
        )
    tested = [row for row in comparisons if row.effect.p is not None]
    if any("pretraining_seed" not in row.effect.covers for row in tested):
        notes.append(
            "Where few pre-training seeds were used, a statement holds for these pre-trained "
            "weights, not for the method in general."
        )
    if tested and {row.baseline for row in tested} == {"equal schedule"}:
        notes.append(
            "Scratch was trained at equal schedule only, not with schedules of its own or with the "
            "steps of the pre-training added."
        )
    if any(fold == 0 for row in comparisons for fold, _ in row.runs):
        notes.append(
            "Settings are chosen on fold 0, so its figures are optimistic; a claim rests on a fold "
            "that no choice has seen."
        )
    return notes


def write_signed(value: float) -> str:
    """`+0.067`; `n/a` where there is no number."""
    return "n/a" if isnan(value) else f"{value:+.3f}"


def write_interval(effect: Effect) -> str:
    """`+0.016 to +0.090`, or why there is none."""
    if is_telling(effect.low, effect.high, effect.repetitions):
        return f"{write_signed(effect.low)} to {write_signed(effect.high)}"
    return f"says nothing ({effect.repetitions} repetition{'s' * (effect.repetitions != 1)})"


def write_p(p: float | None) -> str:
    """`= 0.012` or `< 0.001`."""
    if p is None:
        return "not computed"
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


@dataclass(frozen=True)
class Findings:
    """What a study has found so far.

    Attributes:
        table: the study's long table.
        labels_saved: by method and schedule.
        records: what is known of the run of every cell.
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
    def runs(self) -> list[CellRecord]:
        """Every run once, also where cells share it."""
        return [each for each in self.records if each.same_as is None]

    @property
    def unfinished(self) -> int:
        """Number of runs that are not done."""
        return sum(each.state != "done" for each in self.runs)

    @cached_property
    def sentences(self) -> list[str]:
        """The verdict: sentences of the opening paragraph."""
        return _write_verdict(self)

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
        for method, record in self.pretrainings:
            path = self.folder.fold_folder(record.cell) / PROBE_FILE
            dices += [(method, dice) for dice in read_probe(path).values()]
        return _average(dices)

    @cached_property
    def hours(self) -> dict[str, float]:
        """Method -> hours of one pre-training, all stages together."""
        cells = {each.cell.id: each.cell for each in self.records}
        spent = {each.cell.id: each.hours or 0.0 for each in self.records}
        return _average(
            (method, each.hours + sum(spent[stage] for stage in find_stages(each.cell, cells)))
            for method, each in self.pretrainings
            if each.hours
        )

    @property
    def _finished(self) -> list[CellRecord]:
        return [e for e in self.records if e.cell.role == "main" and e.state == "done"]

    @property
    def pretrainings(self) -> list[tuple[str, CellRecord]]:
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
