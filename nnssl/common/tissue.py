"""Which voxels of an image are tissue."""

from __future__ import annotations

import numpy as np
from skimage.filters import threshold_otsu

VALUES_PER_SLICE = 4096  # that a threshold is found from


def find_tissue(image: np.ndarray) -> np.ndarray:
    """Voxels above Otsu's threshold; all voxels of a constant image.

    The threshold is found from evenly spaced values of the whole volume.

    Args:
        image: (Z, Y, X), any intensity scale.

    Returns:
        (Z, Y, X), bool.

    Reference:
        Otsu: A threshold selection method from gray-level histograms. IEEE Transactions on
        Systems, Man, and Cybernetics 9 (1979).
    """
    step = max(1, image.size // (VALUES_PER_SLICE * max(1, image.shape[0])))
    values = image.reshape(-1)[::step]
    if float(values.min()) == float(values.max()):
        return np.ones(image.shape, bool)
    return np.asarray(image > threshold_otsu(values))
