"""From the long table to effects: every method against scratch, in three ways."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from nnssl.studies.analysis.labels_saved import LabelsSaved, estimate_labels_saved
from nnssl.studies.analysis.statistics import Effect, correct_effects, estimate_effect
from nnssl.studies.run.spec import SCRATCH

Baseline = Literal["equal schedule", "best own schedule", "added steps"]
Run = tuple[int, int]  # fold, repetition
RUN = ["fold", "repetition"]


class Arm(NamedTuple):
    """Cells that differ in fold and repetition only; names as in `Cell`."""

    role: str
    method: str
    schedule: str
    budget: float


@dataclass(frozen=True)
class Comparison:
    """A method against scratch at one budget.

    Attributes:
        baseline: `equal schedule`: scratch trained alike; `best own schedule`: the schedule with
            which scratch has the highest mean Dice on these validation cases; `added steps`:
            scratch with the steps of the pre-training added.
        runs: (fold, repetition) of every pair.
        effect: mean paired difference of Dice with its interval.
    """

    method: str
    schedule: str
    budget: float
    baseline: Baseline
    scratch_schedule: str
    runs: tuple[Run, ...]
    effect: Effect

    @property
    def name(self) -> str:
        return f"{self.method}, {self.schedule}, {self.budget:g}: {self.baseline}"


class Arms:
    """Dice of every arm of the long table as (repetition, patient) arrays per fold.

    Structures are averaged within a case, cases (frames) within a patient.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        keys = [*Arm._fields, *RUN, "pretraining_seed", "patient"]
        cases = table.groupby([*keys, "case"], dropna=False)["dice"].mean()
        patients = cases.groupby(level=keys, dropna=False).mean().reset_index()
        self.arms = {Arm(*key): frame for key, frame in patients.groupby(list(Arm._fields))}

    def runs(self, *arms: Arm) -> list[Run]:
        """The runs that all of these arms have finished; none where an arm is not there."""
        finished = [
            set(self.arms[arm][RUN].itertuples(index=False, name=None))
            for arm in arms
            if arm in self.arms
        ]
        return sorted(set.intersection(*finished)) if len(finished) == len(arms) else []

    def values(self, arm: Arm, runs: list[Run]) -> list[pd.DataFrame]:
        """Per fold a table repetition x patient of these runs."""
        frame = self.arms[arm].set_index(RUN).loc[runs].reset_index()
        return [
            part.pivot_table(index="repetition", columns="patient", values="dice", dropna=False)
            for _, part in frame.groupby("fold")
        ]

    def seeds(self, arm: Arm, runs: list[Run]) -> list[list]:
        """Per fold the pre-training seed of each of these runs."""
        frame = self.arms[arm].drop_duplicates(RUN).set_index(RUN)["pretraining_seed"]
        frame = frame.astype(float).fillna(-1)  # scratch has none: one group
        return [[frame[run] for run in runs if run[0] == fold] for fold in dict(runs)]

    def mean(self, arm: Arm, runs: list[Run]) -> float:
        """Mean Dice over patients, repetitions and folds."""
        return float(np.mean([np.nanmean(value.to_numpy()) for value in self.values(arm, runs)]))

    def interval(self, arm: Arm) -> tuple[float, float, float]:
        """Mean Dice over all finished runs, and the ends of its interval."""
        runs = self.runs(arm)
        values = [value.to_numpy() for value in self.values(arm, runs)]
        effect = estimate_effect(values, groups=self.seeds(arm, runs))  # the difference to 0
        return effect.mean, effect.low, effect.high


def compare(table: pd.DataFrame) -> list[Comparison]:
    """All comparisons that the finished cells allow; Holm's correction within each baseline.

    A pair is a repetition of a fold that both arms have finished; the others wait. Among scratch's
    own schedules (and among several numbers of added steps) the one with the highest mean Dice is
    taken, per budget: a choice on the validation cases, in scratch's favour.
    """
    arms = Arms(table)
    methods = [arm for arm in arms.arms if arm.role == "main" and arm.method != SCRATCH]
    found = [each for arm in methods for each in _compare_arm(arms, arm)]
    corrected: dict[str, Effect] = {}
    for baseline in get_args(Baseline):
        family = {each.name: each.effect for each in found if each.baseline == baseline}
        corrected |= correct_effects(family)
    return [replace(each, effect=corrected[each.name]) for each in found]


def compare_labels(table: pd.DataFrame) -> dict[tuple[str, str], LabelsSaved]:
    """(method, schedule) -> labels saved, where two budgets or more have common repetitions."""
    arms = Arms(table)
    curves: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms.arms:
        if arm.role == "main" and arm.method != SCRATCH:
            curves.setdefault((arm.method, arm.schedule), []).append(arm)
    found = {}
    for name, curve in curves.items():
        pairs = {arm.budget: (arm._replace(method=SCRATCH), arm) for arm in curve}
        runs = {budget: set(arms.runs(*pair)) for budget, pair in pairs.items()}
        budgets = sorted(budget for budget in pairs if runs[budget])
        common = sorted(set.intersection(*(runs[b] for b in budgets))) if len(budgets) > 1 else []
        if common:
            scratch, method = (
                np.array([[arms.mean(pairs[b][i], [run]) for b in budgets] for run in common])
                for i in range(2)
            )
            found[name] = estimate_labels_saved(budgets, scratch, method)
    return found


def _compare_arm(arms: Arms, arm: Arm) -> Iterator[Comparison]:
    scratch = [each for each in arms.arms if (each.method, each.budget) == (SCRATCH, arm.budget)]
    alike = [each for each in scratch if (each.role, each.schedule) == ("main", arm.schedule)]
    own = [each for each in scratch if each.role in ("main", "own_schedule")]
    start = f"{arm.schedule}_and_"
    longer = [e for e in scratch if e.role == "added_steps" and e.schedule.startswith(start)]
    yield from _compare_with_best(arms, arm, "equal schedule", alike)
    if any(each.role == "own_schedule" for each in own):
        yield from _compare_with_best(arms, arm, "best own schedule", own)
    yield from _compare_with_best(arms, arm, "added steps", longer)


def _compare_with_best(
    arms: Arms, arm: Arm, baseline: Baseline, candidates: list[Arm]
) -> Iterator[Comparison]:
    """The comparison with the best of the candidates that have the most pairs."""
    runs = {each: arms.runs(arm, each) for each in candidates}
    most = max((len(each) for each in runs.values()), default=0)
    if not most:
        return
    best = max((c for c in candidates if len(runs[c]) == most), key=lambda c: arms.mean(c, runs[c]))
    pairs = zip(arms.values(arm, runs[best]), arms.values(best, runs[best]), strict=True)
    differences = [(method - scratch).to_numpy() for method, scratch in pairs]
    effect = estimate_effect(differences, groups=arms.seeds(arm, runs[best]))
    yield Comparison(*arm[1:], baseline, best.schedule, tuple(runs[best]), effect)
