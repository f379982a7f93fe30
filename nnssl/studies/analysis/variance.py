"""Variance of a mean over crossed random factors: repetition (row) and patient (column)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ROUNDING = 1e-12  # scatter below this share of the largest value is rounding


@dataclass(frozen=True)
class MeanVariance:
    """A mean, its variance and the degrees of freedom of that variance.

    Attributes:
        mean: mean over all patients, and over the repetitions of their fold.
        variance: of the mean; nan where no fold has two repetitions.
        freedom: Satterthwaite's degrees of freedom; nan with `variance`, or where it is 0.
        repetition: variance component, never negative; nan with `variance`.
        patient: variance component, never negative; nan without two patients in a fold.
        residual: variance component; nan without both.
    """

    mean: float
    variance: float
    freedom: float
    repetition: float
    patient: float
    residual: float

    def interval(self, level: float) -> tuple[float, float]:
        """Student's interval of the mean."""
        if self.variance == 0:
            return self.mean, self.mean
        half = float(stats.t.ppf((1 + level) / 2, self.freedom)) * self.variance**0.5
        return self.mean - half, self.mean + half

    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the mean is 0; nan where nothing scatters."""
        if self.variance == 0:
            return 1.0 if self.mean == 0 else float("nan")
        return float(2 * stats.t.sf(abs(self.mean) / self.variance**0.5, self.freedom))


def crossed_mean(folds: Sequence[np.ndarray]) -> MeanVariance:
    """Two-way random-effects analysis of variance, by moments, pooled over folds.

    Within fold f the model is x[r, p] = m_f + a_r + b_p + e_rp with independent random repetitions
    a, patients b and residuals e; repetitions and patients are nested in folds. With S_a and S_b
    the pooled variances of row and column means, S_e the pooled residual mean square, and h_P and
    h_R the mean of 1/P and 1/R, the components are

        var(a) = max(0, S_a - h_P S_e),  var(b) = max(0, S_b - h_R S_e),  var(e) = S_e,

    and var(mean) = sum_f w_f^2 (var(a) / R_f + var(b) / P_f + var(e) / (R_f P_f)), w_f the fold's
    share of the patients. A component that comes out negative counts as 0: its mean square is then
    replaced by what it would be without the component, in the variance and in Satterthwaite's
    degrees of freedom (with its own degrees of freedom, which errs to the safe side).

    Args:
        folds: one complete (R, P) array per fold. With one patient per fold this is the t test
            over repetitions.
    """
    folds = [np.asarray(fold, float) for fold in folds]
    rows = [fold.mean(1) for fold in folds]
    columns = [fold.mean(0) for fold in folds]
    shapes = np.array([fold.shape for fold in folds], float)
    r, p = shapes[:, 0], shapes[:, 1]
    w = p / p.sum()
    mean = float(sum(share * fold.mean() for share, fold in zip(w, folds, strict=True)))
    residuals = [
        fold - row[:, None] - column + fold.mean()
        for fold, row, column in zip(folds, rows, columns, strict=True)
    ]
    freedom = np.array([(r - 1).sum(), (p - 1).sum(), ((r - 1) * (p - 1)).sum()])
    smallest = (ROUNDING * max(float(np.abs(fold).max()) for fold in folds)) ** 2
    s_a = _pooled(rows, freedom[0], smallest)
    s_b = _pooled(columns, freedom[1], smallest)
    s_e = _square_sum(residuals) / freedom[2] if freedom[2] else 0.0
    s_e = s_e if s_e > smallest else 0.0
    if not freedom[0]:
        return MeanVariance(mean, *[float("nan")] * 5)
    h_p = float(((r - 1) / p).sum() / freedom[0])
    h_r = float(((p - 1) / r).sum() / freedom[1]) if freedom[1] else 0.0
    floored = np.array([max(s_a, h_p * s_e), max(s_b, h_r * s_e), s_e])
    c_a, c_b, c_e = (w**2 / r).sum(), (w**2 / p).sum(), (w**2 / (r * p)).sum()
    parts = floored * np.array([c_a, c_b, c_e - c_a * h_p - c_b * h_r])
    variance = float(parts.sum()) if floored.any() else 0.0
    return MeanVariance(
        mean=mean,
        variance=variance,
        freedom=_satterthwaite(variance, parts, freedom),
        repetition=float(floored[0] - h_p * s_e),
        patient=float(floored[1] - h_r * s_e) if freedom[1] else float("nan"),
        residual=float(s_e) if freedom[2] else float("nan"),
    )


def _satterthwaite(variance: float, parts: np.ndarray, freedom: np.ndarray) -> float:
    present = freedom > 0
    denominator = float((parts[present] ** 2 / freedom[present]).sum())
    return variance**2 / denominator if denominator else float("nan")


def _pooled(groups: Sequence[np.ndarray], freedom: float, smallest: float) -> float:
    """Pooled variance of the means of rows or columns around their fold's mean."""
    if not freedom:
        return 0.0
    pooled = _square_sum([group - group.mean() for group in groups]) / freedom
    return pooled if pooled > smallest else 0.0


def _square_sum(arrays: Sequence[np.ndarray]) -> float:
    return float(sum((array**2).sum() for array in arrays))
