"""How much clusters and labels tell of each other: reported, never trained on."""

from __future__ import annotations

import numpy as np
from scipy.stats import entropy


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
    if not table.any() or (table.sum(0) > 0).sum() < 2:
        return float("nan")
    of_clusters, of_labels, of_both = map(entropy, (table.sum(1), table.sum(0), table.ravel()))
    return float(2 * (of_clusters + of_labels - of_both) / (of_clusters + of_labels))
