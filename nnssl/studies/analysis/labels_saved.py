"""How many labels scratch would need for the Dice that a method reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import isotonic_regression

from nnssl.studies.analysis.statistics import LEAST_REPETITIONS, LEVEL

RESAMPLES = 2000


@dataclass(frozen=True)
class LabelsSaved:
    """Scratch's need of labels for each budget of a method.

    Attributes:
        budgets: the method's budgets, ascending.
        needed: labels that scratch needs for the method's Dice; infinite: more than its largest
            budget; 0: fewer than its smallest.
        low: lower ends of the intervals of `needed`, read like it; None with fewer than 5
            repetitions.
        high: their upper ends.
        level: nominal level of the intervals.
        scratch: scratch's Dice at each budget, after monotone regression.
        method: the method's Dice at each budget, likewise.
    """

    budgets: tuple[float, ...]
    needed: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    level: float
    scratch: tuple[float, ...]
    method: tuple[float, ...]

    def text(self, index: int) -> str:
        """`needed[index]` in words, with its interval."""
        words = self._write(self.needed[index])
        if self.low is None or self.high is None:
            return words
        ends = f"{self._write(self.low[index])} to {self._write(self.high[index])}"
        return f"{words} ({100 * self.level:g} % interval: {ends})"

    def _write(self, value: float) -> str:
        if math.isinf(value):
            return f"more than {self.budgets[-1]:g}"
        return f"{value:.3g}" if value else f"fewer than {self.budgets[0]:g}"


def estimate_labels_saved(
    budgets: Sequence[float], scratch: np.ndarray, method: np.ndarray
) -> LabelsSaved:
    """Reads scratch's curve backwards: the budget at which it first reaches the method's Dice.

    Both curves are made monotone (isotonic regression of the means over repetitions); between
    budgets scratch is linear in log2 of the budget, and beyond them nothing is extrapolated.
    Interval: repetitions are drawn with replacement, both arms together; percentiles widened for
    few repetitions (expanded percentile interval).

    Reference:
        T. Hesterberg, The American Statistician 69(4):371-386, 2015 (expanded percentiles).

    Args:
        budgets: B positive numbers of labels, ascending.
        scratch: (R, B) Dice of scratch per repetition, patients averaged; or (B,).
        method: of the method, same shape; row r of both is the same repetition.

    Raises:
        ValueError: wrong shapes, budgets that do not ascend, or missing values.
    """
    grid, arms = _check(budgets, scratch, method)
    curves = [_make_monotone(arm.mean(0)) for arm in arms]
    needed = _read_backwards(grid, *curves)
    enough = arms.shape[1] >= LEAST_REPETITIONS
    low, high = _estimate_interval(grid, arms) if enough else (None, None)
    own, reached = (tuple(map(float, curve)) for curve in curves)
    return LabelsSaved(tuple(map(float, grid)), needed, low, high, LEVEL, own, reached)


def _check(
    budgets: Sequence[float], scratch: np.ndarray, method: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    grid = np.asarray(budgets, float)
    if grid.ndim != 1 or not len(grid) or (grid <= 0).any() or (np.diff(grid) <= 0).any():
        raise ValueError(f"budgets: found {list(budgets)}, allowed are positive ascending numbers")
    pair = [np.atleast_2d(np.asarray(arm, float)) for arm in (scratch, method)]
    shapes = [arm.shape for arm in pair]
    if shapes[0] != shapes[1] or shapes[0][1] != len(grid):
        raise ValueError(
            f"scratch has shape {shapes[0]}, method {shapes[1]}; both must be (repetitions, "
            f"{len(grid)}), one column per budget"
        )
    arms = np.stack(pair)
    if not np.isfinite(arms).all():
        missing = sorted({(int(r), float(grid[b])) for _, r, b in np.argwhere(~np.isfinite(arms))})
        raise ValueError(
            f"no value for (repetition, budget) {missing[:10]}; give the repetitions and budgets "
            "that both arms have finished"
        )
    return grid, arms


def _make_monotone(curve: np.ndarray) -> np.ndarray:
    return np.asarray(isotonic_regression(curve).x)


def _read_backwards(grid: np.ndarray, scratch: np.ndarray, method: np.ndarray) -> tuple[float, ...]:
    """Smallest budget at which the monotone curve of scratch reaches each value; inf, 0 outside."""
    return tuple(_find_first_reach(np.log2(grid), scratch, float(value)) for value in method)


def _find_first_reach(log_grid: np.ndarray, curve: np.ndarray, value: float) -> float:
    if value > curve[-1]:
        return math.inf
    if value < curve[0]:
        return 0.0
    right = int(np.searchsorted(curve, value, side="left"))
    if right == 0:
        return float(2.0 ** log_grid[0])
    share = (value - curve[right - 1]) / (curve[right] - curve[right - 1])
    return float(2.0 ** (log_grid[right - 1] + share * (log_grid[right] - log_grid[right - 1])))


def _estimate_interval(
    grid: np.ndarray, arms: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    repetitions = arms.shape[1]
    drawn = np.random.default_rng(0).integers(repetitions, size=(RESAMPLES, repetitions))
    means = arms[:, drawn].mean(2)  # (2, RESAMPLES, B)
    pairs = zip(*means, strict=True)
    found = [_read_backwards(grid, _make_monotone(s), _make_monotone(m)) for s, m in pairs]
    widening = math.sqrt(repetitions / (repetitions - 1))
    tail = float(stats.norm.sf(stats.t.ppf((1 + LEVEL) / 2, repetitions - 1) * widening))
    low, high = np.quantile(found, [tail, 1 - tail], axis=0, method="inverted_cdf").tolist()
    return tuple(low), tuple(high)
