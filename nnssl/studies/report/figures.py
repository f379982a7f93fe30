"""The figures of a report that show numbers, no images of patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, product
from typing import Any

import numpy as np
import pandas as pd

from nnssl.common.drawing import COLOURS, GREY, STYLE, escape_math, make_panels, render
from nnssl.common.page import Picture
from nnssl.studies.analysis.comparisons import Arm, Comparison
from nnssl.studies.report.findings import Findings
from nnssl.studies.report.words import is_telling, name_budget, name_structure
from nnssl.studies.run.spec import SCRATCH

MARKERS = ("o", "s", "^", "D", "v", "P")


def choose_looks(methods: Sequence[str]) -> Looks:
    """Scratch is grey; the order decides the others."""
    others = [method for method in methods if method != SCRATCH]
    pairs = cycle(zip(COLOURS, MARKERS, strict=True))
    looks = {name: {"color": c, "marker": m} for name, (c, m) in zip(others, pairs, strict=False)}
    return {SCRATCH: {"color": GREY, "marker": "X"}, **looks}


SPREAD = 0.12  # sideways distance between methods, octaves of the budget
BESIDE = 0.03  # of the single repetitions from their mean, octaves
Looks = dict[str, dict[str, str]]  # method -> color and marker
Draw = Callable[[Findings, Looks], Picture | None]


def draw_all(found: Findings) -> list[Picture]:
    """Every figure for which the study has something to show."""
    import matplotlib

    if found.table.empty:
        return []
    with matplotlib.rc_context(STYLE):
        look = choose_looks(found.methods)
        return [picture for draw in FIGURES if (picture := draw(found, look)) is not None]


def draw_label_efficiency(found: Findings, look: Looks) -> Picture:
    """Mean Dice over the number of labels, one panel per schedule."""
    x_of, x_label = _count_labels(found.main, found.unit)
    schedules = list(dict.fromkeys(found.main["schedule"]))
    figure, axes = make_panels(len(schedules), 6.0, 4.0)
    for axis, schedule in zip(axes, schedules, strict=True):
        for number, method in enumerate(found.methods):
            shift = 2 ** (SPREAD * (number - (len(found.methods) - 1) / 2))
            if arms := sorted(a for a in found.arms.arms if a[1:3] == (method, schedule)):
                x = np.array([x_of[arm.budget] * shift for arm in arms])
                _draw_curve(axis, found, arms, x, look[method])
        axis.set_xscale("log", base=2)
        ticks = sorted(set(x_of.values()))
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xlim(min(ticks) / 1.5, max(ticks) * 1.5)
        axis.minorticks_off()
        axis.set(ylim=(0, 1), xlabel=x_label, ylabel="mean Dice (0 to 1)")
        axis.set_title(escape_math(f"schedule: {schedule}"))
    _add_key(figure, axes[0])
    return Picture(
        "label_efficiency",
        "Dice over the number of labels",
        "Higher is better. Small symbols: one repetition, with labelled patients of its own. Lines "
        "join the means; bars are 95 % intervals over repetitions and patients, drawn with "
        "three repetitions or more, unless wider than all of Dice. Bars of two methods "
        "may overlap although their paired difference is clear: judge that by the next figure.",
        render(figure),
    )


def _draw_curve(axis: Any, found: Findings, arms: list[Arm], x: np.ndarray, look: dict) -> None:
    """The means of a method's arms with their intervals, and every repetition beside them."""
    mean, low, high = np.array([found.arms.interval(arm) for arm in arms]).T
    counts = [len(found.arms.runs(arm)) for arm in arms]
    telling = [is_telling(*ends) for ends in zip(low, high, counts, strict=True)]
    bars = np.where(telling, np.stack([mean - low, high - mean]), 0.0)
    axis.errorbar(x, mean, bars, lw=1.6, capsize=3, label=escape_math(arms[0].method), **look)
    for place, arm in zip(x, arms, strict=True):
        dices = [found.arms.mean(arm, [run]) for run in found.arms.runs(arm)]
        beside = [place * 2**-BESIDE] * len(dices)
        axis.scatter(beside, dices, s=18, alpha=0.7, lw=0, **look)


def _count_labels(table: pd.DataFrame, unit: str) -> tuple[dict[float, float], str]:
    """Budget -> labelled volumes (or slices), where the runs recorded them."""
    column = "labelled_slices" if unit == "slices" else "labelled_volumes"
    means = table.groupby("budget")[column].mean()
    if means.isna().any() or not means.gt(0).all():
        return {budget: float(budget) for budget in means.index}, f"labelled {unit}"
    return means.to_dict(), column.replace("_", " ")


def draw_paired_differences(found: Findings, look: Looks) -> Picture | None:
    """One row per method and budget: every repetition, the mean and its interval."""
    rows = found.comparisons
    if not rows:
        return None
    figure, (axis,) = make_panels(1, 9.0, 1.3 + 0.42 * len(rows))
    for place, row in enumerate(reversed(rows)):
        (colour, marker), effect = look[row.method].values(), row.effect
        if is_telling(effect.low, effect.high, effect.repetitions):
            axis.plot([effect.low, effect.high], [place] * 2, color=colour, lw=2)
        places = [place] * effect.repetitions
        axis.scatter(effect.per_repetition, places, s=40, color=colour, alpha=0.75, lw=0)
        open_symbol: Any = {"color": "white", "edgecolor": colour, "lw": 2, "zorder": 3}
        axis.scatter([effect.mean], [place], s=60, marker=marker, **open_symbol)
    axis.axvline(0, color="black", lw=1)
    names = [escape_math(_name_row(row, found.unit)) for row in reversed(rows)]
    axis.set_yticks(range(len(rows)), names)
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_xlabel("difference in Dice to scratch (right of 0: the method is better)")
    return Picture(
        "paired_differences",
        "Difference to scratch",
        "Every dot is one repetition: the same labelled patients and the same seed, once from "
        "pre-trained and once from random weights. Open symbol: their mean. Line: 95 % interval "
        "(patients and repetitions both vary), not drawn with fewer than 3 repetitions or where it "
        "is wider than all of Dice; with fewer than 5 repetitions it only describes.",
        render(figure),
    )


def _name_row(row: Comparison, unit: str) -> str:
    baseline = {"equal schedule": "scratch", "best own schedule": "best scratch"}
    against = baseline.get(row.baseline, "scratch, longer")
    return f"{row.method} - {against} | {name_budget(row.budget, unit)} | {row.schedule}"


def draw_structures(found: Findings, look: Looks) -> Picture:
    """Dice, HD95 and NSD per structure, one row of panels per budget."""
    budgets, names = sorted(set(found.main["budget"])), list(dict.fromkeys(found.main["structure"]))
    methods = found.methods
    metrics = {
        "dice": "Dice, 0 to 1 (higher is better)",
        "hd95": "HD95, mm (lower is better)",
        "nsd": "surface Dice, 0 to 1 (higher is better)",
    }
    figure, axes = make_panels(3 * len(budgets), 4.2, 1.7 + 0.35 * len(names), most=3)
    for axis, (budget, metric) in zip(axes, product(budgets, metrics), strict=True):
        part = found.main[found.main["budget"] == budget]
        for number, method in enumerate(methods):
            runs = part[part["method"] == method].groupby(["structure", "cell"])[metric].mean()
            places = np.arange(len(names)) + 0.5 * ((number + 0.5) / len(methods) - 0.5)
            for place, name in zip(places, names, strict=True):
                if name in runs.index:
                    values, colour = runs[name], look[method]["color"]
                    beside = [place] * len(values)
                    axis.scatter(values, beside, s=12, color=colour, alpha=0.45, lw=0)
                    axis.scatter([values.mean()], [place], s=42, **look[method])
            axis.plot([], [], lw=0, label=escape_math(method), **look[method])
        shown = [escape_math(name_structure(name)) for name in names] if metric == "dice" else []
        axis.set_yticks(range(len(names)), shown or [""] * len(names))
        axis.set_ylim(len(names) - 0.4, -0.6)  # the first structure on top
        axis.set(xlabel=metrics[metric], title=name_budget(budget, found.unit))
        axis.set_xlim(**({"left": 0} if metric == "hd95" else {"left": 0, "right": 1}))
    _add_key(figure, axes[0])
    return Picture(
        "structures",
        "By structure",
        "Large symbol: mean over repetitions; small: one repetition (mean over validation cases). "
        "HD95: within this distance lie 95 % of the surface. Surface Dice: share of the surface "
        "within the stated tolerance.",
        render(figure),
    )


def draw_patients(found: Findings, look: Looks) -> Picture | None:
    """Dice of every validation patient: scratch against method, all repetitions."""
    if not found.at_equal_schedule:
        return None
    methods = list(dict.fromkeys(each.method for each in found.at_equal_schedule))
    figure, axes = make_panels(len(methods), 3.9, 3.9, most=3)
    for axis, method in zip(axes, methods, strict=True):
        points = np.concatenate(
            [_find_points(found, e) for e in found.at_equal_schedule if e.method == method]
        )
        axis.scatter(*points.T, s=14, alpha=0.5, lw=0, color=look[method]["color"], rasterized=True)
        axis.axline((0, 0), slope=1, color="black", lw=1)
        share = np.mean(points[:, 1] > points[:, 0])
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axis.set(xlabel="Dice, scratch", ylabel=escape_math(f"Dice, {method}"))
        axis.set_title(f"better in {100 * share:.0f} % of {len(points)} pairs", fontsize=9)
    return Picture(
        "scatter",
        "Patient by patient",
        "One point is one validation patient in one repetition; above the line the method is "
        "better. Points of one patient or one repetition are not independent.",
        render(figure),
    )


def _find_points(found: Findings, row: Comparison) -> np.ndarray:
    """(N, 2): Dice of scratch and of the method, per patient and repetition."""
    arms = [Arm("main", name, row.schedule, row.budget) for name in (SCRATCH, row.method)]
    tables = [found.arms.values(arm, list(row.runs)) for arm in arms]
    points = np.stack([np.concatenate([f.to_numpy().ravel() for f in t]) for t in tables], axis=1)
    return points[np.isfinite(points).all(1)]


def draw_learning_curves(found: Findings, look: Looks) -> Picture | None:
    """Pseudo Dice over epochs, mean over repetitions."""
    curves = {key: _average_curves(lists) for key, lists in found.curves.items() if any(lists)}
    places = list(dict.fromkeys(key[1:] for key in curves))
    if not places:
        return None
    figure, axes = make_panels(len(places), 4.6, 3.2, most=3)
    for axis, place in zip(axes, places, strict=True):
        for method in found.methods:
            curve = curves.get((method, *place))
            if curve is not None:
                epochs = range(1, len(curve) + 1)
                axis.plot(epochs, curve, color=look[method]["color"], label=escape_math(method))
        axis.set(xlabel="epoch", ylabel="pseudo Dice (0 to 1)", ylim=(0, 1))
        title = f"{name_budget(place[1], found.unit)}, {place[0]}"
        axis.set_title(escape_math(title), fontsize=10)
    _add_key(figure, *axes)
    return Picture(
        "learning_curves",
        "Fine-tuning over epochs",
        "nnU-Net's pseudo Dice on patches of the validation cases, mean over repetitions: noisy, "
        "and not the final score. Where scratch still rises at the end, the schedule was too short "
        "to speak of label efficiency: part of a difference is then speed of convergence.",
        render(figure),
    )


def _average_curves(lists: list[list[float]]) -> np.ndarray:
    length = min(len(each) for each in lists if each)
    stacked = np.array([each[:length] for each in lists if each])
    counts = np.isfinite(stacked).sum(0)
    return np.where(counts, np.nansum(stacked, axis=0) / np.maximum(counts, 1), np.nan)


def draw_probe(found: Findings, look: Looks) -> Picture | None:
    """Probe Dice of the frozen features against fine-tuned Dice at the smallest budget."""
    points = {}
    for row in _find_smallest_budget(found):
        if row.method in found.probes:
            arm = Arm("main", row.method, row.schedule, row.budget)
            points[row.method] = (found.probes[row.method], found.arms.mean(arm, list(row.runs)))
    if not points:
        return None
    return Picture(
        "probe",
        "Does the probe foretell the result?",
        "Across: Dice of a linear classifier on frozen features right after pre-training. Up: "
        "Dice after fine-tuning with the smallest budget.",
        _draw_points(look, points, "probe Dice of the frozen encoder", "fine-tuned Dice"),
    )


def draw_cost(found: Findings, look: Looks) -> Picture | None:
    """Gain over scratch at the smallest budget against hours of pre-training."""
    rows = [row for row in _find_smallest_budget(found) if row.method in found.hours]
    if not rows:
        return None
    points = {row.method: (found.hours[row.method], row.effect.mean) for row in rows}
    across = "hours of one pre-training (wall clock)"
    return Picture(
        "cost",
        "What does the difference cost?",
        "Mean paired difference at the smallest budget (equal schedule) over the hours of one "
        "pre-training run on the machine that was used.",
        _draw_points(look, points, across, "difference in Dice to scratch"),
    )


def _find_smallest_budget(found: Findings) -> list[Comparison]:
    """Of every method the comparison at equal schedule with the smallest budget."""
    rows: dict[str, Comparison] = {}
    for row in sorted(found.at_equal_schedule, key=lambda row: row.budget):
        rows.setdefault(row.method, row)
    return list(rows.values())


def _draw_points(
    look: Looks, points: dict[str, tuple[float, float]], across: str, up: str
) -> bytes:
    figure, (axis,) = make_panels(1, 5.5, 3.4)
    for method, (x, y) in points.items():
        axis.scatter([x], [y], s=60, label=escape_math(method), **look[method])
    axis.set(xlabel=across, ylabel=up)
    axis.margins(0.2)
    axis.axhline(0, color="black", lw=1)
    axis.set_xlim(left=0)
    _add_key(figure, axis)
    return render(figure)


def _add_key(figure: Any, *axes: Any) -> None:
    """Whose colours and symbols these are, outside of the panels: no symbol is taken for data."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(found.values(), found, loc="outside lower left", ncols=4, fontsize=9)


FIGURES: tuple[Draw, ...] = (
    draw_label_efficiency,
    draw_paired_differences,
    draw_structures,
    draw_patients,
    draw_learning_curves,
    draw_probe,
    draw_cost,
)
