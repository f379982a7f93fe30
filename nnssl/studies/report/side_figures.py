"""Figures beside the result: course of the fine-tuning, probe, cost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nnssl.studies.analysis.comparisons import Arms, Comparison
from nnssl.studies.report.drawing import Picture, looks, panels, safe, save
from nnssl.studies.report.material import Material


def learning_curves(material: Material) -> Picture | None:
    """Pseudo Dice over epochs, mean over repetitions."""
    curves = {key: _mean_curve(lists) for key, lists in material.curves.items() if any(lists)}
    places = list(dict.fromkeys(key[1:] for key in curves))
    if not places:
        return None
    look = looks(material.methods)
    figure, axes = panels(len(places), 4.6, 3.2, most=3)
    for axis, place in zip(axes, places, strict=True):
        for method in material.methods:
            curve = curves.get((method, *place))
            if curve is not None:
                epochs = range(1, len(curve) + 1)
                axis.plot(epochs, curve, color=look[method][0], label=safe(method))
        axis.set(xlabel="epoch", ylabel="pseudo Dice (0 to 1)", ylim=(0, 1))
        axis.set_title(safe(f"{place[1]:g} {material.unit}, {place[0]}"), fontsize=10)
    axes[0].legend(fontsize=8)
    return Picture(
        "learning_curves",
        "Fine-tuning over epochs",
        "nnU-Net's pseudo Dice on patches of the validation cases, mean over repetitions: noisy, "
        "and not the final score. Where scratch still rises at the end, the schedule was too short "
        "to speak of label efficiency: part of a difference is then speed of convergence.",
        save(figure),
    )


def _mean_curve(lists: list[list[float]]) -> np.ndarray:
    length = min(len(each) for each in lists if each)
    stacked = np.array([each[:length] for each in lists if each])
    counts = np.maximum(np.isfinite(stacked).sum(0), 1)
    return np.nansum(stacked, axis=0) / counts


def probe(material: Material) -> Picture | None:
    """Probe Dice of the frozen features against fine-tuned Dice at the smallest budget."""
    rows = {each.method: _method_dice(material, each) for each in _smallest(material)}
    found = {
        name: (material.probes[name], dice)
        for name, dice in rows.items()
        if name in material.probes
    }
    if not found:
        return None
    return _labelled_points(
        material,
        found,
        ("probe Dice of the frozen encoder", "fine-tuned Dice"),
        Picture(
            "probe",
            "Does the probe foretell the result?",
            "Across: Dice of a linear classifier on frozen features right after pre-training. Up: "
            "Dice after fine-tuning with the smallest budget.",
            b"",
        ),
    )


def cost(material: Material) -> Picture | None:
    """Gain over scratch at the smallest budget against hours of pre-training."""
    rows = {each.method: each.effect.mean for each in _smallest(material)}
    found = {
        name: (material.hours[name], gain) for name, gain in rows.items() if name in material.hours
    }
    if not found:
        return None
    return _labelled_points(
        material,
        found,
        ("hours of one pre-training (wall clock)", "difference in Dice to scratch"),
        Picture(
            "cost",
            "What does the difference cost?",
            "Mean paired difference at the smallest budget (equal schedule) over the hours of one "
            "pre-training run on the machine that was used.",
            b"",
        ),
    )


def _labelled_points(
    material: Material,
    points: dict[str, tuple[float, float]],
    names: tuple[str, str],
    into: Picture,
) -> Picture:
    look = looks(material.methods)
    figure, (axis,) = panels(1, 5.5, 3.4)
    for method, (x, y) in points.items():
        axis.scatter(
            [x], [y], s=60, color=look[method][0], marker=look[method][1], label=safe(method)
        )
    axis.set(xlabel=names[0], ylabel=names[1])
    axis.margins(0.2)
    axis.axhline(0, color="black", lw=1)
    axis.set_xlim(left=0)
    axis.legend(fontsize=9)
    return Picture(into.name, into.title, into.caption, save(figure))


def _smallest(material: Material) -> Iterator[Comparison]:
    """Of every method the comparison at equal schedule with the smallest budget."""
    seen = set()
    for each in sorted(material.twins, key=lambda row: row.budget):
        if each.method not in seen:
            seen.add(each.method)
            yield each


def _method_dice(material: Material, row: Comparison) -> float:
    return Arms(material.main).mean(("main", row.method, row.schedule, row.budget), list(row.runs))
