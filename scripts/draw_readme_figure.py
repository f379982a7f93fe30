"""Draws docs/figures/labels_and_dice.svg of the README from the figures beside it (CSV)."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib
import numpy as np

from nnssl.common.drawing import COLOURS, GREY, STYLE, escape_math, make_panels, render

FOLDER = Path(__file__).parents[1] / "docs" / "figures"
SHIFT = (0.96, 1.0, 1.04)  # sideways, so that dots of several methods are told apart


def read() -> dict[str, list[tuple[float, list[float]]]]:
    """Method -> (labelled patients, Dice of each repetition)."""
    found: dict[str, list[tuple[float, list[float]]]] = {}
    with (FOLDER / "labels_and_dice.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            patients, method, dices = row.values()
            found.setdefault(method, []).append((float(patients), [*map(float, dices.split())]))
    return found


def draw() -> bytes:
    """Means joined by lines, and a dot for every repetition."""
    figure, (axis,) = make_panels(1, 6.4, 3.6)
    looks = zip((GREY, *COLOURS), ("X", "o", "s"), SHIFT, strict=False)
    for (method, rows), (colour, marker, shift) in zip(read().items(), looks, strict=False):
        x = np.array([patients for patients, _ in rows]) * shift
        means = [np.mean(dices) for _, dices in rows]
        axis.plot(x, means, color=colour, marker=marker, ms=8, label=escape_math(method))
        for place, (_, dices) in zip(x, rows, strict=True):
            axis.scatter([place] * len(dices), dices, s=14, color=colour, alpha=0.5, lw=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks([1, 2, 8], ["1", "2", "8"])
    axis.minorticks_off()
    axis.set(ylim=(0, 1), xlabel="labelled patients", ylabel="Dice (0 to 1), 40 validation volumes")
    axis.set_title("Few labels: heart MR (ACDC), fold 0, 2,000 steps, 3 repetitions (small dots)")
    figure.legend(loc="outside lower left", ncols=3, fontsize=9)
    return render(figure)


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        (FOLDER / "labels_and_dice.svg").write_bytes(draw())
