"""Labels saved: a curve read backwards, never beyond its ends."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nnssl.studies.analysis import labels_saved as module
from nnssl.studies.analysis.labels_saved import estimate_labels_saved

BUDGETS = (1, 2, 4, 8)
SCRATCH = np.array([0.4, 0.5, 0.6, 0.7])


def test_between_budgets_the_curve_is_linear_in_log2():
    found = estimate_labels_saved(BUDGETS, SCRATCH, np.array([0.45, 0.55, 0.65, 0.7]))
    assert found.needed == pytest.approx((2**0.5, 2**1.5, 2**2.5, 8))
    assert found.low is None
    assert found.text(0) == "1.41"


def test_beyond_the_curve_nothing_is_extrapolated():
    found = estimate_labels_saved(BUDGETS, SCRATCH, np.array([0.3, 0.5, 0.6, 0.71]))
    assert found.needed == (0, 2, 4, math.inf)
    assert found.text(0) == "fewer than 1"
    assert found.text(3) == "more than 8"


def test_the_same_curve_needs_the_same_labels():
    assert estimate_labels_saved(BUDGETS, SCRATCH, SCRATCH).needed == pytest.approx(BUDGETS)


def test_a_dip_is_levelled_and_a_plateau_read_at_its_first_budget():
    found = estimate_labels_saved(
        BUDGETS, np.array([0.4, 0.6, 0.5, 0.7]), np.array([0.4, 0.55, 0.55, 0.6])
    )
    assert found.scratch == pytest.approx((0.4, 0.55, 0.55, 0.7))
    assert found.needed[1:3] == pytest.approx((2, 2))
    assert found.needed[3] == pytest.approx(2 ** (2 + 1 / 3))


def test_scale_and_offset_of_the_score_do_not_matter():
    method = np.array([0.45, 0.52, 0.66, 0.7])
    a, b = (
        estimate_labels_saved(BUDGETS, f * SCRATCH + o, f * method + o)
        for f, o in ((1, 0), (50, 7))
    )
    assert a.needed == pytest.approx(b.needed)


def repetitions(count: int, gain: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shared = generator.normal(0, 0.03, (count, 4))
    scratch, method = (
        curve + shared + generator.normal(0, 0.01, (count, 4))
        for curve in (SCRATCH, SCRATCH + gain)
    )
    return scratch, method


def test_five_repetitions_give_an_interval_around_the_truth():
    found = estimate_labels_saved(BUDGETS, *repetitions(6, 0.05, 0))
    truth = (2**0.5, 2**1.5, 2**2.5, math.inf)
    for low, needed, high, true in zip(found.low, found.needed, found.high, truth, strict=True):
        assert low <= needed <= high
        assert low <= true <= high
    assert "95 % interval" in found.text(0)
    assert estimate_labels_saved(BUDGETS, *repetitions(6, 0.05, 0)).low == found.low


def test_four_repetitions_give_none():
    assert estimate_labels_saved(BUDGETS, *repetitions(4, 0.05, 0)).high is None


def test_intervals_cover(monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 200)
    found = [estimate_labels_saved(BUDGETS, *repetitions(6, 0.05, seed)) for seed in range(60)]
    covered = np.mean([each.low[1] <= 2**1.5 <= each.high[1] for each in found])
    assert covered > 0.85
    assert np.median([each.low[1] for each in found]) > 2


@pytest.mark.parametrize(
    ("budgets", "scratch", "message"),
    [
        ((1, 4, 2, 8), SCRATCH, "ascending"),
        ((0, 1, 2, 4), SCRATCH, "positive"),
        ((1, 2), SCRATCH, "one column per budget"),
        (BUDGETS, np.array([0.4, np.nan, 0.6, 0.7]), r"\(0, 2.0\)"),
    ],
)
def test_what_cannot_be_read_is_refused(budgets, scratch, message):
    with pytest.raises(ValueError, match=message):
        estimate_labels_saved(budgets, scratch, SCRATCH)
