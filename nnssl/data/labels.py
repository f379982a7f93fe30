"""How many labels fine-tuning may see: nested, grouped by patient, chosen without any label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval, MinLen

from nnssl.common.checks import Count, Whole, checked
from nnssl.common.files import write_json
from nnssl.nnunet.cases import CaseRecord, Patient
from nnssl.nnunet.paths import LABELLED_FILE

UNITS = ("patients", "volumes", "percentage", "slices", "cases")


@checked
@dataclass(frozen=True)
class LabelBudget:
    """Section `labels`: at most one of the five; none of them: all training cases of the fold.

    Patients are put into an order that depends on the seed only, and a budget takes from the front:
    of two budgets with one seed, the smaller lies in the larger.

    Attributes:
        patients: number of patients, with all their volumes.
        volumes: number of volumes: the first volume (by case identifier) of one patient after the
            other, then the second ones, and so on. So 2 volumes are those of two patients.
        percentage: of the patients; at least one patient.
        slices: number of slices, drawn over all training volumes of the fold; for 2D configurations
            only. The other slices of these volumes are not seen, neither image nor label.
        cases: identifiers of training cases.
        seed: of the order of patients, or of slices.
    """

    patients: Count | None = None
    volumes: Count | None = None
    percentage: Annotated[float, Interval(gt=0, le=100)] | None = None
    slices: Count | None = None
    cases: Annotated[list[str], MinLen(1)] | None = None
    seed: Whole = 0

    def __post_init__(self) -> None:
        given = [unit for unit in UNITS if getattr(self, unit) is not None]
        if len(given) > 1:
            raise ValueError(
                f"labels: found {' and '.join(given)}; allowed is one of {', '.join(UNITS)}"
            )

    @property
    def unit(self) -> str:
        """The one of the five that is given, or `all`."""
        return next((unit for unit in UNITS if getattr(self, unit) is not None), "all")


@dataclass(frozen=True)
class Labelled:
    """The labelled cases of a run, and how they were chosen."""

    unit: str
    value: Any
    seed: int
    patients: list[str]
    cases: list[str]
    slices: dict[str, list[int]] | None = None  # on array axis 0, ascending; None: all

    def to_dict(self) -> dict[str, Any]:
        """Plain record for the checkpoint and the output folder."""
        numbers = {"number_of_patients": len(self.patients), "number_of_volumes": len(self.cases)}
        return {**asdict(self), **numbers}

    def describe(self) -> str:
        """One line for the log."""
        chosen = "all training cases" if self.unit == "all" else f"{self.unit}: {self.value}"
        more = " ..." if len(self.cases) > 20 else ""
        return (
            f"Labels: {chosen} (seed {self.seed}) = {len(self.patients)} patients, "
            f"{len(self.cases)} volumes: {', '.join(self.cases[:20])}{more}"
        )


def choose_labelled(
    budget: LabelBudget,
    train: Sequence[str],
    records: Mapping[str, CaseRecord],
    depth: Callable[[str], int] | None = None,
) -> Labelled:
    """Choose the labelled cases of a fold; `depth` gives the slices of a case, in 2D only."""
    volumes: dict[Patient, list[str]] = {}
    for case in sorted(train):
        volumes.setdefault(records[case].key[::-1], []).append(case)
    slices = None
    if budget.slices is not None:
        slices = _draw_slices(budget.slices, budget.seed, sorted(train), depth)
        chosen = list(slices)
    elif budget.cases is not None:
        chosen = _check_named(budget.cases, train)
    elif budget.volumes is not None:
        _check_available("volumes", budget.volumes, len(train))
        order, rounds = _shuffle(volumes, budget.seed), range(max(map(len, volumes.values())))
        in_turn = [volumes[name][i] for i in rounds for name in order if i < len(volumes[name])]
        chosen = in_turn[: budget.volumes]
    else:
        count = _count_patients(budget, len(volumes))
        chosen = [case for name in _shuffle(volumes, budget.seed)[:count] for case in volumes[name]]
    chosen = sorted(chosen)
    patients = [name for name, _ in sorted({records[case].key[::-1] for case in chosen})]
    value = getattr(budget, budget.unit, None)
    return Labelled(budget.unit, value, budget.seed, patients, chosen, slices)


def refuse_budget_for_all(budget: LabelBudget, fold: int | str) -> None:
    """Raises ValueError for a budget with fold `all`, which validates on its training cases."""
    if fold == "all" and budget.unit != "all":
        raise ValueError(
            f"labels.{budget.unit}: a label budget needs a numbered fold. Fold 'all' validates on "
            "its own training cases, so its result says nothing about few labels. Train on fold 0, "
            "for instance."
        )


def write_labelled(folder: str | Path, labelled: Labelled, slices: int | None) -> None:
    """Writes `labelled_cases.json`; `slices`: along array axis 0 of the preprocessed volumes."""
    write_json(Path(folder) / LABELLED_FILE, {**labelled.to_dict(), "number_of_slices": slices})


def _shuffle(patients: Mapping[Patient, Any], seed: int) -> list[Patient]:
    names = sorted(patients)
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def _count_patients(budget: LabelBudget, available: int) -> int:
    if budget.percentage is not None:
        return max(1, round(budget.percentage / 100 * available))
    wanted = available if budget.patients is None else budget.patients
    _check_available("patients", wanted, available)
    return wanted


def _check_available(unit: str, wanted: int, available: int) -> None:
    if wanted > available:
        raise ValueError(
            f"labels.{unit}: found {wanted}, but this fold has {available} {unit} for training; "
            f"allowed: 1 to {available}"
        )


def _draw_slices(
    wanted: int, seed: int, cases: Sequence[str], depth: Callable[[str], int] | None
) -> dict[str, list[int]]:
    """The first `wanted` of all slices in an order that depends on the seed only."""
    if depth is None:
        raise ValueError(
            f"labels.slices: found {wanted}, but this configuration trains on 3D patches; a budget "
            "of slices is for 2d only. Allowed here: patients, volumes, percentage or cases."
        )
    places = [(case, index) for case in cases for index in range(depth(case))]
    _check_available("slices", wanted, len(places))
    order = np.random.default_rng(seed).permutation(len(places))[:wanted]
    slices: dict[str, list[int]] = {}
    for case, index in sorted(places[i] for i in order):
        slices.setdefault(case, []).append(index)
    return slices


def _check_named(cases: Sequence[str], train: Sequence[str]) -> list[str]:
    if missing := sorted(set(cases) - set(train)):
        raise ValueError(
            f"labels.cases: {', '.join(missing[:10])} are not training cases of this fold (a "
            f"validation case is never trained on); allowed are its {len(train)} training cases, "
            f"for instance {', '.join(sorted(train)[:5])}"
        )
    return sorted(set(cases))
