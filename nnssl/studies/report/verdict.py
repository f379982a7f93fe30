"""What a report says in words; nothing that its statistics do not support."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import isnan
from typing import Literal

from nnssl.studies.analysis.comparisons import Comparison
from nnssl.studies.analysis.statistics import LEAST_REPETITIONS

ALPHA = 0.05
AGAINST = {
    "equal schedule": "scratch at equal schedule",
    "best own schedule": "scratch with the best of its own schedules",
    "added steps": "scratch with the steps of the pre-training added",
}


def write_verdict(
    comparisons: Sequence[Comparison], unit: str, unfinished: int, cells: int
) -> list[str]:
    """Sentences of the opening paragraph; `unfinished` of all the cells are not done."""
    sentences = []
    if unfinished:
        sentences.append(
            f"This study is unfinished: {unfinished} of {cells} runs are not done (listed below); "
            "all that follows may still change."
        )
    if not comparisons:
        sentences.append("No pair of a pre-trained and a scratch run is finished yet.")
    several = len({each.schedule for each in comparisons}) > 1
    of_arm = groupby(comparisons, key=lambda each: (each.method, each.schedule, each.budget))
    for (method, schedule, budget), rows in of_arm:
        where = f"with {budget:g} labelled {unit}" + (f" ({schedule})" if several else "")
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


def write_p(p: float | None) -> str:
    """`= 0.012` or `< 0.001`."""
    if p is None:
        return "not computed"
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
