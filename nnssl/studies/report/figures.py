"""The figures of a report that show no image of a patient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from nnssl.studies.analysis.comparisons import Arms, Comparison
from nnssl.studies.analysis.statistics import mean_interval
from nnssl.studies.report.drawing import STYLE, Picture, looks, panels, safe, save
from nnssl.studies.report.material import Material
from nnssl.studies.report.side_figures import cost, learning_curves, probe
from nnssl.studies.run.spec import SCRATCH

SPREAD = 0.12  # sideways distance between methods, octaves of the budget
BESIDE = 0.03  # of the single repetitions from their mean, octaves
Draw = Callable[[Material], Picture | None]


def draw_all(material: Material) -> list[Picture]:
    """Every figure for which the study has something to show."""
    import matplotlib

    if material.table.empty:
        return []
    with matplotlib.rc_context(STYLE):
        return [picture for draw in FIGURES if (picture := draw(material)) is not None]


def label_efficiency(material: Material) -> Picture:
    """Mean Dice over the number of labels, one panel per schedule."""
    x_of, x_label = _labels(material.main, material.unit)
    arms, look = Arms(material.main), looks(material.methods)
    schedules = list(dict.fromkeys(material.main["schedule"]))
    figure, axes = panels(len(schedules), 6.0, 4.0)
    for axis, schedule in zip(axes, schedules, strict=True):
        for number, method in enumerate(material.methods):
            shift = 2 ** (SPREAD * (number - (len(material.methods) - 1) / 2))
            keys = sorted(key for key in arms.arms if key[1:3] == (method, schedule))
            points = [(x_of[key[3]] * shift, *_with_interval(arms, key)) for key in keys]
            if points:
                _curve(axis, points, look[method], method)
        axis.set_xscale("log", base=2)
        ticks = sorted(set(x_of.values()))
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xlim(min(ticks) / 1.5, max(ticks) * 1.5)
        axis.minorticks_off()
        axis.set(
            ylim=(0, 1),
            xlabel=x_label,
            ylabel="mean Dice (0 to 1)",
            title=safe(f"schedule: {schedule}"),
        )
        axis.legend(fontsize=9)
    return Picture(
        "label_efficiency",
        "Dice over the number of labels",
        "Higher is better. Small symbols: one repetition, with labelled patients of its own. Lines "
        "join the means; bars are 95 % intervals over repetitions and patients, drawn where there "
        "are at least two repetitions. Bars of two arms may overlap although their paired "
        "difference is clear: judge differences by the next figure.",
        save(figure),
    )


def _curve(axis: Any, points: list[tuple], look: tuple[str, str], name: str) -> None:
    colour, marker = look
    x, mean, low, high = (np.array([point[i] for point in points]) for i in range(4))
    bars = np.nan_to_num(np.stack([mean - low, high - mean]))
    axis.errorbar(x, mean, bars, color=colour, marker=marker, lw=1.6, capsize=3, label=safe(name))
    for place, point in zip(x, points, strict=True):
        rows = point[4]
        beside = [place * 2**-BESIDE] * len(rows)
        axis.scatter(beside, rows, s=18, color=colour, alpha=0.7, lw=0, marker=marker)


def _with_interval(arms: Arms, key: tuple[str, str, str, float]) -> tuple:
    runs = arms.runs(key)
    values = [frame.to_numpy() for frame in arms.values(key, runs)]
    mean, low, high = mean_interval(values, groups=arms.seeds(key, runs))
    return mean, low, high, [arms.mean(key, [run]) for run in runs]


def _labels(table: pd.DataFrame, unit: str) -> tuple[dict[float, float], str]:
    """Budget -> labelled volumes (or slices), where the runs recorded them."""
    column = "labelled_slices" if unit == "slices" else "labelled_volumes"
    means = table.groupby("budget")[column].mean()
    if means.isna().any() or not means.gt(0).all():
        return {budget: float(budget) for budget in means.index}, f"labelled {unit}"
    return means.to_dict(), column.replace("_", " ")


def paired_differences(material: Material) -> Picture | None:
    """One row per method and budget: every repetition, the mean and its interval."""
    rows = list(material.comparisons)
    if not rows:
        return None
    look = looks(material.methods)
    figure, (axis,) = panels(1, 8.0, 1.3 + 0.42 * len(rows))
    for place, row in enumerate(reversed(rows)):
        colour, marker = look[row.method]
        effect = row.effect
        axis.plot([effect.low, effect.high], [place] * 2, color=colour, lw=2)
        axis.scatter(
            effect.per_repetition,
            [place] * effect.repetitions,
            s=40,
            color=colour,
            alpha=0.75,
            lw=0,
        )
        axis.scatter(
            [effect.mean],
            [place],
            s=60,
            color="white",
            edgecolor=colour,
            lw=2,
            marker=marker,
            zorder=3,
        )
    axis.axvline(0, color="black", lw=1)
    axis.set_yticks(range(len(rows)), [safe(_row_name(r, material.unit)) for r in reversed(rows)])
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_xlabel("difference in Dice: method minus scratch (right of 0: the method is better)")
    return Picture(
        "paired_differences",
        "Difference to scratch",
        "Every dot is one repetition: the same labelled patients and the same seed, once from "
        "pre-trained and once from random weights. Open symbol: their mean. Line: 95 % interval "
        "(patients and repetitions both vary); with fewer than 5 repetitions it only describes.",
        save(figure),
    )


def _row_name(row: Comparison, unit: str) -> str:
    baseline = {"equal schedule": "scratch", "best own schedule": "best scratch"}
    against = baseline.get(row.baseline, "scratch, longer")
    return f"{row.method} - {against} | {row.budget:g} {unit} | {row.schedule}"


def structures(material: Material) -> Picture:
    """Dice, HD95 and NSD per structure, one row of panels per budget."""
    budgets, names = (
        sorted(set(material.main["budget"])),
        list(dict.fromkeys(material.main["structure"])),
    )
    look, methods = looks(material.methods), material.methods
    metrics = {
        "dice": "Dice (higher is better)",
        "hd95": "HD95, mm (lower is better)",
        "nsd": "surface Dice (higher is better)",
    }
    figure, axes = panels(3 * len(budgets), 3.7, 1.5 + 0.35 * len(names), most=3)
    for axis, (budget, metric) in zip(
        axes, ((b, m) for b in budgets for m in metrics), strict=True
    ):
        part = material.main[material.main["budget"] == budget]
        for number, method in enumerate(methods):
            runs = part[part["method"] == method].groupby(["structure", "cell"])[metric].mean()
            places = np.arange(len(names)) + 0.5 * ((number + 0.5) / len(methods) - 0.5)
            for place, name in zip(places, names, strict=True):
                if name in runs.index:
                    _dots(axis, runs[name], place, look[method])
            axis.plot(
                [], [], color=look[method][0], marker=look[method][1], lw=0, label=safe(method)
            )
        axis.set_yticks(range(len(names)), [safe(name) for name in names])
        axis.set_ylim(len(names) - 0.4, -0.6)  # the first structure on top
        axis.set(xlabel=metrics[metric], title=f"{budget:g} {material.unit}")
        axis.set_xlim(**({"left": 0} if metric == "hd95" else {"left": 0, "right": 1}))
    axes[0].legend(fontsize=8)
    return Picture(
        "structures",
        "By structure",
        "Large symbol: mean over repetitions; small: one repetition (mean over validation cases). "
        "HD95: within this distance lie 95 % of the surface. Surface Dice: share of the surface "
        "within the stated tolerance.",
        save(figure),
    )


def _dots(axis: Any, values: pd.Series, place: float, look: tuple[str, str]) -> None:
    colour, marker = look
    axis.scatter(values, [place] * len(values), s=12, color=colour, alpha=0.45, lw=0)
    axis.scatter([values.mean()], [place], s=42, color=colour, marker=marker)


def scatter(material: Material) -> Picture | None:
    """Dice of every validation patient: scratch against method, all repetitions."""
    if not material.twins:
        return None
    arms, look = Arms(material.main), looks(material.methods)
    methods = list(dict.fromkeys(each.method for each in material.twins))
    figure, axes = panels(len(methods), 3.9, 3.9, most=3)
    for axis, method in zip(axes, methods, strict=True):
        points = np.concatenate([_points(arms, e) for e in material.twins if e.method == method])
        axis.scatter(*points.T, s=14, alpha=0.5, lw=0, color=look[method][0], rasterized=True)
        axis.axline((0, 0), slope=1, color="black", lw=1)
        share = np.mean(points[:, 1] > points[:, 0])
        axis.set(
            xlim=(0, 1),
            ylim=(0, 1),
            aspect="equal",
            xlabel="Dice, scratch",
            ylabel=safe(f"Dice, {method}"),
        )
        axis.set_title(f"better in {100 * share:.0f} % of {len(points)} pairs", fontsize=9)
    return Picture(
        "scatter",
        "Patient by patient",
        "One point is one validation patient in one repetition; above the line the method is "
        "better. Points of one patient or one repetition are not independent.",
        save(figure),
    )


def _points(arms: Arms, row: Comparison) -> np.ndarray:
    """(N, 2): Dice of scratch and of the method, per patient and repetition."""
    keys = [("main", name, row.schedule, row.budget) for name in (SCRATCH, row.method)]
    both = [
        np.concatenate([f.to_numpy().ravel() for f in arms.values(k, list(row.runs))]) for k in keys
    ]
    points = np.stack(both, axis=1)
    return points[np.isfinite(points).all(1)]


FIGURES: tuple[Draw, ...] = (
    label_efficiency,
    paired_differences,
    structures,
    scatter,
    learning_curves,
    probe,
    cost,
)
