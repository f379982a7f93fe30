"""From the long table to effects: every method against scratch, in three ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from nnssl.studies.analysis.statistics import (
    Effect,
    LabelsSaved,
    labels_saved,
    paired_effect,
    with_holm,
)
from nnssl.studies.run.spec import SCRATCH

Baseline = Literal["equal schedule", "best own schedule", "added steps"]
Arm = tuple[str, str, str, float]  # role, method, schedule, budget
ARM = ["role", "method", "schedule", "budget"]
RUN = ["fold", "repetition"]
ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """A method against scratch at one budget.

    Attributes:
        method: arm of the study.
        schedule: its fine-tuning schedule.
        budget: number of labels.
        baseline: `equal schedule`: scratch trained alike; `best own schedule`: the schedule with
            which scratch has the highest mean Dice on these validation cases; `added steps`:
            scratch with the steps of the pre-training added.
        scratch_schedule: the schedule of scratch.
        runs: (fold, repetition) of every pair.
        effect: mean paired difference of Dice with its interval.
    """

    method: str
    schedule: str
    budget: float
    baseline: Baseline
    scratch_schedule: str
    runs: tuple[tuple[int, int], ...]
    effect: Effect

    @property
    def name(self) -> str:
        return f"{self.method}, {self.schedule}, {self.budget:g}: {self.baseline}"


class Arms:
    """Dice of every arm as (repetition, patient) arrays per fold.

    Structures are averaged within a case, cases (frames) within a patient.

    Args:
        table: of `nnssl.studies.analysis.table.collect`.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        keys = [*ARM, *RUN, "pretraining_seed", "patient"]
        cases = table.groupby([*keys, "case"], dropna=False)["dice"].mean()
        patients = cases.groupby(level=keys, dropna=False).mean().reset_index()
        self.arms: dict[Arm, pd.DataFrame] = dict(iter(patients.groupby(ARM)))

    def runs(self, arm: Arm) -> list[tuple[int, int]]:
        """(fold, repetition) of the finished runs of an arm."""
        frame = self.arms[arm]
        return sorted(set(zip(frame["fold"], frame["repetition"], strict=True)))

    def values(self, arm: Arm, runs: list[tuple[int, int]]) -> list[pd.DataFrame]:
        """Per fold a table repetition x patient of these runs."""
        frame = self.arms[arm].set_index(RUN).loc[runs].reset_index()
        return [
            part.pivot_table(index="repetition", columns="patient", values="dice", dropna=False)
            for _, part in frame.groupby("fold")
        ]

    def seeds(self, arm: Arm, runs: list[tuple[int, int]]) -> list[list]:
        """Per fold the pre-training seed of each of these runs."""
        frame = self.arms[arm].drop_duplicates(RUN).set_index(RUN)["pretraining_seed"]
        frame = frame.astype(float).fillna(-1)  # scratch has none: one group
        return [[frame[run] for run in runs if run[0] == fold] for fold in dict(runs)]

    def mean(self, arm: Arm, runs: list[tuple[int, int]]) -> float:
        """Mean Dice over patients, repetitions and folds."""
        return float(np.mean([np.nanmean(value.to_numpy()) for value in self.values(arm, runs)]))


def compare(table: pd.DataFrame) -> list[Comparison]:
    """All comparisons that the finished cells allow; Holm's correction within each baseline.

    A pair is a repetition of a fold that both arms have finished; the others wait. Among scratch's
    own schedules (and among several numbers of added steps) the one with the highest mean Dice is
    taken, per budget: a choice on the validation cases, in scratch's favour.
    """
    arms = Arms(table)
    methods = [arm for arm in arms.arms if arm[0] == "main" and arm[1] != SCRATCH]
    found = [each for arm in methods for each in _of_arm(arms, arm)]
    corrected: dict[str, Effect] = {}
    for baseline in dict.fromkeys(each.baseline for each in found):
        family = {each.name: each.effect for each in found if each.baseline == baseline}
        corrected |= with_holm(family)
    return [replace(each, effect=corrected[each.name]) for each in found]


def claim(comparisons: list[Comparison]) -> Literal["gain", "loss", "none", "untested"]:
    """What may be said of one method at one budget, from its comparisons with scratch.

    A gain must be significant over every baseline that was run, a loss under the equal schedule.
    """
    effects = [each.effect for each in comparisons]
    if any(effect.p_holm is None for effect in effects):
        return "untested"
    found = [effect.p_holm is not None and effect.p_holm < ALPHA for effect in effects]
    if all(found) and all(effect.mean > 0 for effect in effects):
        return "gain"
    twin = [each for each in comparisons if each.baseline == "equal schedule"]
    lost = [e.effect for e in twin if (e.effect.p_holm or 0.0) < ALPHA and e.effect.mean < 0]
    return "loss" if lost else "none"


def grouped(comparisons: list[Comparison]) -> dict[tuple[str, str, float], list[Comparison]]:
    """(method, schedule, budget) -> its comparisons."""
    groups: dict[tuple[str, str, float], list[Comparison]] = {}
    for each in comparisons:
        groups.setdefault((each.method, each.schedule, each.budget), []).append(each)
    return groups


def saved(table: pd.DataFrame) -> dict[tuple[str, str], LabelsSaved]:
    """(method, schedule) -> labels saved, where two budgets or more have common repetitions."""
    arms = Arms(table)
    found = {}
    for method, schedule in dict.fromkeys(arm[1:3] for arm in arms.arms if arm[0] == "main"):
        pairs = _both(arms, method, schedule) if method != SCRATCH else {}
        runs = sorted(set.intersection(*map(set, pairs.values()))) if len(pairs) > 1 else []
        if runs:
            budgets = sorted(pairs)
            scratch, own = (
                np.array([_curve(arms, m, schedule, budgets, run) for run in runs])
                for m in (SCRATCH, method)
            )
            found[method, schedule] = labels_saved(budgets, scratch, own)
    return found


def _curve(
    arms: Arms, method: str, schedule: str, budgets: list[float], run: tuple[int, int]
) -> list[float]:
    return [arms.mean(("main", method, schedule, budget), [run]) for budget in budgets]


def _both(arms: Arms, method: str, schedule: str) -> dict[float, list[tuple[int, int]]]:
    """Budget -> runs that method and scratch have finished."""
    budgets = [arm[3] for arm in arms.arms if arm[:3] == ("main", method, schedule)]
    twins = {b: ("main", SCRATCH, schedule, b) for b in budgets}
    common = {
        b: _common(arms, ("main", method, schedule, b), twin)
        for b, twin in twins.items()
        if twin in arms.arms
    }
    return {budget: runs for budget, runs in common.items() if runs}


def _common(arms: Arms, one: Arm, other: Arm) -> list[tuple[int, int]]:
    return sorted(set(arms.runs(one)) & set(arms.runs(other)))


def _of_arm(arms: Arms, arm: Arm) -> Iterator[Comparison]:
    _, _, schedule, budget = arm
    scratch = [each for each in arms.arms if each[1] == SCRATCH and each[3] == budget]
    twin = [each for each in scratch if each[0] == "main" and each[2] == schedule]
    own = [each for each in scratch if each[0] in ("main", "own_schedule")]
    added = [
        each
        for each in scratch
        if each[0] == "added_steps" and each[2].startswith(f"{schedule}_and_")
    ]
    yield from _against(arms, arm, "equal schedule", twin)
    if any(each[0] == "own_schedule" for each in own):
        yield from _against(arms, arm, "best own schedule", own)
    yield from _against(arms, arm, "added steps", added)


def _against(
    arms: Arms,
    arm: Arm,
    baseline: Baseline,
    candidates: list[Arm],
) -> Iterator[Comparison]:
    """The comparison with the best of the candidates that have the most pairs."""
    runs = {each: _common(arms, arm, each) for each in candidates}
    most = max((len(each) for each in runs.values()), default=0)
    if not most:
        return
    best = max((c for c in candidates if len(runs[c]) == most), key=lambda c: arms.mean(c, runs[c]))
    pairs = zip(arms.values(arm, runs[best]), arms.values(best, runs[best]), strict=True)
    differences = [(method - scratch).to_numpy() for method, scratch in pairs]
    effect = paired_effect(differences, groups=arms.seeds(arm, runs[best]))
    yield Comparison(*arm[1:], baseline, best[2], tuple(runs[best]), effect)


def plain(comparison: Comparison) -> dict[str, object]:
    """Record for `effects.json`."""
    effect = {**vars(comparison.effect), "components": dict(comparison.effect.components)}
    return {**vars(comparison), "effect": effect}


def by_key(values: Mapping[tuple[str, str], LabelsSaved]) -> list[dict[str, object]]:
    """Labels saved as records for `effects.json`."""
    return [
        {
            "method": method,
            "schedule": schedule,
            **vars(value),
            "text": [value.text(i) for i in range(len(value.budgets))],
        }
        for (method, schedule), value in values.items()
    ]
