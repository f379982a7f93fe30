"""What a report says in words; nothing that its statistics do not support."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from nnssl.studies.analysis.comparisons import Comparison, claim, grouped
from nnssl.studies.analysis.statistics import LEAST_REPETITIONS

AGAINST = {
    "equal schedule": "scratch at equal schedule",
    "best own schedule": "scratch with the best of its own schedules",
    "added steps": "scratch with the steps of the pre-training added",
}


def verdict(comparisons: Sequence[Comparison], unit: str, unfinished: int, cells: int) -> list[str]:
    """Sentences of the opening paragraph.

    Args:
        comparisons: of `compare`.
        unit: of the budgets.
        unfinished: cells that are not done.
        cells: all cells.
    """
    sentences = []
    if unfinished:
        sentences.append(
            f"This study is unfinished: {unfinished} of {cells} runs are not done (listed below); "
            "all that follows may still change."
        )
    if not comparisons:
        sentences.append("No pair of a pre-trained and a scratch run is finished yet.")
    for (method, schedule, budget), rows in grouped(list(comparisons)).items():
        place = f"with {budget:g} labelled {unit}" + (
            f" ({schedule})" if len({each.schedule for each in comparisons}) > 1 else ""
        )
        sentences.append(_sentence(method, place, rows))
    return [*sentences, *_conditions(comparisons)]


def _sentence(method: str, place: str, rows: list[Comparison]) -> str:
    found = claim(rows)
    hardest = min(rows, key=lambda row: row.effect.mean)
    if found == "untested":
        return _untested(method, place, rows[0])
    if found == "gain":
        against = _baselines(rows)
        return f"{method} gains {_size(hardest)} over {against} {place} {_numbers(hardest)}."
    if found == "loss":
        twin = next(row for row in rows if row.baseline == "equal schedule")
        against = AGAINST[twin.baseline]
        return f"{method} lies {_size(twin)} below {against} {place} {_numbers(twin)}."
    shown = max(rows, key=lambda row: row.effect.p_holm or 0.0)
    return (
        f"No difference between {method} and {AGAINST[shown.baseline]} was shown {place} "
        f"{_numbers(shown)}."
    )


def _untested(method: str, place: str, row: Comparison) -> str:
    each = ", ".join(signed(value) for value in row.effect.per_repetition)
    count = row.effect.repetitions
    return (
        f"{method} {place}: no claim is made from {count} repetition{'s' * (count != 1)}. "
        f"Paired difference in Dice to {AGAINST[row.baseline]}, repetition by repetition: {each} "
        f"(mean {signed(row.effect.mean)})."
    )


def _baselines(rows: list[Comparison]) -> str:
    names = [AGAINST[row.baseline] for row in rows]
    if len(names) == 1:
        return names[0]
    return f"the hardest of {len(names)} comparisons ({', '.join(names)})"


def _size(row: Comparison) -> str:
    return f"{abs(row.effect.mean):.3f} Dice"


def _numbers(row: Comparison) -> str:
    effect = row.effect
    return (
        f"(paired difference {signed(effect.mean)}, {100 * effect.level:g} % interval "
        f"{signed(effect.low)} to {signed(effect.high)}, Holm-corrected p {p_text(effect.p_holm)}, "
        f"{effect.repetitions} repetitions)"
    )


def _conditions(comparisons: Sequence[Comparison]) -> list[str]:
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


def signed(value: float, digits: int = 3) -> str:
    """`+0.067`; `n/a` where there is no number."""
    return "n/a" if isnan(value) else f"{value:+.{digits}f}"


def p_text(p: float | None) -> str:
    """`= 0.012` or `< 0.001`."""
    if p is None:
        return "not computed"
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
