"""The one rule by which caches, cluster maps and samplers tell tissue from air."""

from __future__ import annotations

import numpy as np
from skimage.filters import threshold_otsu

from nnssl.common.tissue import VALUES_PER_SLICE, find_tissue


def test_tissue_lies_above_otsus_threshold_of_evenly_spaced_values():
    random = np.random.default_rng(3)
    image = random.normal(0, 1, (3, 200, 100)).astype(np.float32)
    image[:, 50:] += 8
    step = image.size // (3 * VALUES_PER_SLICE)
    assert step > 1
    expected = image > threshold_otsu(image.reshape(-1)[::step])
    np.testing.assert_array_equal(find_tissue(image), expected)
    assert 0.7 < expected.mean() < 0.8


def test_a_constant_image_is_tissue():
    assert find_tissue(np.full((2, 3, 4), -5.0)).all()
