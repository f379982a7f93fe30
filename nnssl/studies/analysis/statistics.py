"""Effects with honest intervals: repetition and patient as crossed random factors.

How often each candidate calls a study without any effect significant at 5 % was simulated before
one was chosen; `docs/statistics.md` has the table.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

LEVEL = 0.95  # of every interval
LEAST_REPETITIONS = 5  # for a p-value, and as many less one beyond the first of each fold
LEAST_SEED_FREEDOM = 2  # seeds beyond the first, summed over folds, that an interval can rest on
ROUNDING = 1e-12  # scatter below this share of the largest value is rounding
Seeds = Sequence[Sequence[Hashable]]


@dataclass(frozen=True)
class Effect:
    """A mean paired difference with its interval.

    Attributes:
        mean: mean difference; every patient counts equally, and every repetition of its fold.
        low: lower end of the interval; nan with a single repetition per fold.
        high: its upper end.
        level: nominal level of the interval.
        p: two-sided; None with fewer than 5 repetitions (or fewer than 4 beyond the first of each
            fold: 3 in each of 2 folds, not 2 in each of 3), and where nothing scatters although
            the mean is not 0 (such a difference is a copy, no measurement).
        p_holm: `p` corrected by `correct_effects`; None until then.
        per_repetition: mean difference of every repetition, folds one after the other.
        repetitions: their number, over all folds.
        patients: number of patients, over all folds.
        folds: number of folds.
        left_out: patients left out because a repetition has no value for them.
        components: variances of `repetition`, `patient`, `residual`, nan where the design cannot
            tell; `pretraining_seed`, where some seeds were used twice and others exist, is the
            part of `repetition` between seeds.
        freedom: degrees of freedom of the interval.
        covers: what the interval generalises over: `repetition`, `patient`, and
            `pretraining_seed` only where enough seeds were used; without it, the statement is one
            on these pre-trained weights, not on the method.
    """

    mean: float
    low: float
    high: float
    level: float
    p: float | None
    p_holm: float | None
    per_repetition: tuple[float, ...]
    repetitions: int
    patients: int
    components: Mapping[str, float]
    folds: int = 1
    left_out: int = 0
    freedom: float = float("nan")
    covers: tuple[str, ...] = ("repetition", "patient")


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

    @property
    def interval(self) -> tuple[float, float]:
        """Student's interval of the mean."""
        if self.variance == 0:
            return self.mean, self.mean
        half = float(stats.t.ppf((1 + LEVEL) / 2, self.freedom)) * self.variance**0.5
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> float | None:
        """Two-sided, of the hypothesis that the mean is 0; None where nothing scatters."""
        if self.variance == 0:
            return 1.0 if self.mean == 0 else None
        return float(2 * stats.t.sf(abs(self.mean) / self.variance**0.5, self.freedom))


def estimate_effect(differences: Sequence[np.ndarray], groups: Seeds | None = None) -> Effect:
    """Mean paired difference over repetitions crossed with patients, nested in folds.

    Variance by `estimate_crossed_mean`. With `groups`, the differences are also averaged within
    each pre-training seed, and the seeds analysed as the repetitions are. If there are enough seeds
    (two beyond the first of each fold, summed), the larger of both variances is taken, with the
    seeds' degrees of freedom. With fewer, the interval is conditional on the runs used; `covers`
    says which holds.

    Args:
        differences: one (R, P) array per fold, method minus scratch; frames and structures were
            averaged before. A patient without a value in some repetition is left out of all.
        groups: per fold, the pre-training seed of each of the R repetitions. Folds never share a
            run: equal names in two folds are two runs. None: one run per fold.

    Raises:
        ValueError: wrong shapes, a repetition without any value, or more patients left out than
            kept.
    """
    folds, left_out = _check_folds(differences)
    seeds = [[0] * len(fold) for fold in folds] if groups is None else groups
    if [len(each) for each in seeds] != [len(fold) for fold in folds]:
        raise ValueError(
            f"groups: found {[len(each) for each in seeds]} seeds per fold, but the folds have "
            f"{[len(fold) for fold in folds]} repetitions; one seed per repetition is needed"
        )
    found = estimate_crossed_mean(folds)
    components = {name: getattr(found, name) for name in ("repetition", "patient", "residual")}
    between = _estimate_between_seeds(folds, seeds)
    components |= {} if between is None else {"pretraining_seed": between}
    basis, covers = _choose_basis(found, folds, seeds)
    low, high = basis.interval
    rows = tuple(float(value) for fold in folds for value in fold.mean(1))
    enough = len(rows) >= LEAST_REPETITIONS and len(rows) - len(folds) >= LEAST_REPETITIONS - 1
    return Effect(
        mean=found.mean,
        low=low,
        high=high,
        level=LEVEL,
        p=basis.p_value if enough else None,
        p_holm=None,
        per_repetition=rows,
        repetitions=len(rows),
        patients=sum(fold.shape[1] for fold in folds),
        components=components,
        folds=len(folds),
        left_out=left_out,
        freedom=basis.freedom,
        covers=covers,
    )


def correct_p_values(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction; what has no p-value was not tested and does not count.

    Reference:
        S. Holm, Scandinavian Journal of Statistics 6(2):65-70, 1979.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[i] = largest
    return corrected


def correct_effects(effects: Mapping[str, Effect]) -> dict[str, Effect]:
    """The effects with `p_holm`, corrected over all of them; intervals stay unadjusted."""
    corrected = correct_p_values([effect.p for effect in effects.values()])
    return {
        name: replace(effect, p_holm=p)
        for (name, effect), p in zip(effects.items(), corrected, strict=True)
    }


def estimate_crossed_mean(folds: Sequence[np.ndarray]) -> MeanVariance:
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
    s_a = _pool_variance(rows, freedom[0], smallest)
    s_b = _pool_variance(columns, freedom[1], smallest)
    s_e = _sum_squares(residuals) / freedom[2] if freedom[2] else 0.0
    s_e = s_e if s_e > smallest else 0.0
    if not freedom[0]:
        return MeanVariance(mean, *[float("nan")] * 5)
    h_p = float(((r - 1) / p).sum() / freedom[0])
    h_r = float(((p - 1) / r).sum() / freedom[1]) if freedom[1] else 0.0
    floored = np.array([max(s_a, h_p * s_e), max(s_b, h_r * s_e), s_e])
    c_a, c_b, c_e = (w**2 / r).sum(), (w**2 / p).sum(), (w**2 / (r * p)).sum()
    parts = floored * np.array([c_a, c_b, c_e - c_a * h_p - c_b * h_r])
    variance = float(parts.sum()) if floored.any() else 0.0
    present = freedom > 0
    denominator = float((parts[present] ** 2 / freedom[present]).sum())
    return MeanVariance(
        mean=mean,
        variance=variance,
        freedom=variance**2 / denominator if denominator else float("nan"),
        repetition=float(floored[0] - h_p * s_e),
        patient=float(floored[1] - h_r * s_e) if freedom[1] else float("nan"),
        residual=float(s_e) if freedom[2] else float("nan"),
    )


def _check_folds(differences: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """Arrays without missing values, and how many patients that cost."""
    if isinstance(differences, np.ndarray) and differences.ndim != 3:
        raise ValueError(
            f"one (R, P) array per fold is needed; found one array of shape {differences.shape}. "
            "Put a single fold into a list."
        )
    folds = [np.asarray(fold, float) for fold in differences]
    if not folds:
        raise ValueError("no fold was given; at least one (R, P) array is needed")
    kept = [_drop_incomplete_patients(number, fold) for number, fold in enumerate(folds)]
    return kept, sum(a.shape[1] - b.shape[1] for a, b in zip(folds, kept, strict=True))


def _drop_incomplete_patients(number: int, fold: np.ndarray) -> np.ndarray:
    if fold.ndim != 2 or 0 in fold.shape:
        raise ValueError(
            f"fold {number} (in the order given): found shape {fold.shape}, allowed is "
            "(repetitions, patients) with at least one of each"
        )
    missing = ~np.isfinite(fold)
    if empty := [int(row) for row in np.flatnonzero(missing.all(1))]:
        raise ValueError(
            f"fold {number} (in the order given): repetitions {empty} have no value at all; run "
            "their cells, or leave these repetitions out of both arms"
        )
    kept = ~missing.any(0)
    if kept.sum() * 2 < len(kept):
        raise ValueError(
            f"fold {number} (in the order given): only {kept.sum()} of {len(kept)} patients have a "
            f"value in every repetition (missing in repetitions "
            f"{[int(row) for row in np.flatnonzero(missing.any(1))]}); at least half must"
        )
    return fold[:, kept]


def _choose_basis(
    found: MeanVariance, folds: Sequence[np.ndarray], seeds: Seeds
) -> tuple[MeanVariance, tuple[str, ...]]:
    """The variance that the interval rests on, and what it covers."""
    covers = ("repetition", "patient")
    parts = [_split_by_seed(fold, names) for fold, names in zip(folds, seeds, strict=True)]
    if sum(len(each) - 1 for each in parts) < LEAST_SEED_FREEDOM or min(map(len, parts)) < 2:
        return found, covers
    by_seed = estimate_crossed_mean([np.stack([s.mean(0) for s in each]) for each in parts])
    counts = [np.array([len(seed) for seed in each]) for each in parts]
    unequal = max(len(each) * float(((each / each.sum()) ** 2).sum()) for each in counts)
    variance = max(found.variance, unequal * by_seed.variance)
    # a variance of 0 has no degrees of freedom
    freedom = by_seed.freedom if by_seed.variance else found.freedom
    return replace(found, variance=variance, freedom=freedom), (*covers, "pretraining_seed")


def _estimate_between_seeds(folds: Sequence[np.ndarray], seeds: Seeds) -> float | None:
    """Variance between seeds beyond that between repetitions of a seed; None if inseparable."""
    within = freedom_within = between = freedom_between = shrink = 0.0
    for fold, names in zip(folds, seeds, strict=True):
        of_seed = _split_by_seed(fold.mean(1), names)
        within += _sum_squares([each - each.mean() for each in of_seed])
        freedom_within += len(fold) - len(of_seed)
        averages = np.array([each.mean() for each in of_seed])
        between += float(((averages - averages.mean()) ** 2).sum())
        freedom_between += len(of_seed) - 1
        shrink += (len(of_seed) - 1) * float(np.mean([1 / len(each) for each in of_seed]))
    if not freedom_within or not freedom_between:
        return None
    expected = within / freedom_within * shrink / freedom_between
    return max(0.0, between / freedom_between - expected)


def _split_by_seed(values: np.ndarray, names: Sequence[Hashable]) -> list[np.ndarray]:
    """The rows of every seed, seeds in the order of their first row."""
    return [values[[n == name for n in names]] for name in dict.fromkeys(names)]


def _pool_variance(groups: Sequence[np.ndarray], freedom: float, smallest: float) -> float:
    """Pooled variance of the means of rows or columns around their fold's mean."""
    if not freedom:
        return 0.0
    pooled = _sum_squares([group - group.mean() for group in groups]) / freedom
    return pooled if pooled > smallest else 0.0


def _sum_squares(arrays: Sequence[np.ndarray]) -> float:
    return float(sum((array**2).sum() for array in arrays))
