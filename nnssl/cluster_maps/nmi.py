"""How much clusters and labels tell of each other: reported, never trained on."""

from __future__ import annotations

import numpy as np


def contingency(
    clusters: np.ndarray, labels: np.ndarray, shape: tuple[int, int] | None = None
) -> np.ndarray:
    """Counts (K, L) of pairs; places where either is negative do not count.

    Args:
        clusters: integers of any shape.
        labels: integers, as many.
        shape: (K, L), default: as large as the numbers found.
    """
    a, b = (np.asarray(x).reshape(-1).astype(np.int64) for x in (clusters, labels))
    known = (a >= 0) & (b >= 0)
    a, b = a[known], b[known]
    rows, columns = shape or (int(a.max(initial=-1)) + 1, int(b.max(initial=-1)) + 1)
    return np.bincount(a * columns + b, minlength=rows * columns).reshape(rows, columns)


def normalised_mutual_information(table: np.ndarray) -> float:
    """`2 I(C; L) / (H(C) + H(L))` of a contingency table: 0 independent, 1 the same partition.

    NaN where there is only one label or no place at all.
    """
    total = table.sum()
    if total == 0 or (table.sum(0) > 0).sum() < 2:
        return float("nan")
    joint = table / total
    of_clusters, of_labels, of_both = (
        _entropy(p) for p in (joint.sum(1), joint.sum(0), joint.ravel())
    )
    return float(2 * (of_clusters + of_labels - of_both) / (of_clusters + of_labels))


def _entropy(shares: np.ndarray) -> float:
    kept = shares[shares > 0]
    return float(-(kept * np.log(kept)).sum())
