"""Effects: nominal error rates on planted studies, and the estimators of scipy and statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nnssl.studies.analysis.statistics import (
    correct_effects,
    correct_p_values,
    estimate_crossed_mean,
    estimate_effect,
)

REPLICATES = 1000
MARGIN = 3.3 * np.sqrt(0.05 * 0.95 / REPLICATES)  # a right test stays within it but once in 1000


def planted(
    generator: np.random.Generator,
    *,
    effect: float = 0.0,
    folds: int = 1,
    repetitions: int = 8,
    patients: int = 20,
    deviations: tuple[float, float, float] = (0.04, 0.04, 0.05),
    frames: int = 2,
) -> list[np.ndarray]:
    """(R, P, frames) per fold: effects of repetition, patient, and both, in two frames each."""
    of_repetition, of_patient, residual = deviations
    return [
        effect
        + generator.normal(0, of_repetition, (repetitions, 1, 1))
        + generator.normal(0, of_patient, (1, patients, 1))
        + generator.normal(0, residual, (repetitions, patients, frames))
        for _ in range(folds)
    ]


def averaged(study: list[np.ndarray]) -> list[np.ndarray]:
    return [fold.mean(2) for fold in study]


@pytest.mark.parametrize(
    ("folds", "repetitions", "deviations"),
    [(1, 8, (0.04, 0.04, 0.05)), (1, 5, (0.05, 0.03, 0.08)), (2, 5, (0.02, 0.05, 0.05))],
)
def test_without_an_effect_five_percent_of_the_studies_are_significant(
    folds, repetitions, deviations
):
    generator = np.random.default_rng(folds + repetitions)
    found = [
        estimate_effect(
            averaged(
                planted(generator, folds=folds, repetitions=repetitions, deviations=deviations)
            )
        )
        for _ in range(REPLICATES)
    ]
    significant = np.mean([effect.p < 0.05 for effect in found])
    assert abs(significant - 0.05) < MARGIN
    covered = [effect.low <= 0 <= effect.high for effect in found]
    assert np.mean(covered) == pytest.approx(1 - significant)


def test_an_effect_is_found_and_covered():
    generator = np.random.default_rng(3)
    found = [estimate_effect(averaged(planted(generator, effect=0.05))) for _ in range(400)]
    assert np.mean([effect.p < 0.05 for effect in found]) > 0.6
    assert np.mean([effect.mean for effect in found]) == pytest.approx(0.05, abs=0.004)
    assert np.mean([effect.low <= 0.05 <= effect.high for effect in found]) > 0.91


def test_wilcoxon_over_all_cases_and_repetitions_calls_null_studies_significant():
    generator = np.random.default_rng(4)
    studies = np.stack([planted(generator)[0].ravel() for _ in range(400)])
    wilcoxon = stats.wilcoxon(studies, axis=1, method="asymptotic").pvalue
    assert np.mean(wilcoxon < 0.05) > 0.25


def test_with_one_patient_it_is_the_t_test_over_repetitions():
    values = np.random.default_rng(5).normal(0.03, 0.05, (6, 1))
    expected = stats.ttest_1samp(values[:, 0], 0.0)
    effect = estimate_effect([values])
    assert effect.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))


def test_where_patients_are_all_alike_it_is_the_t_test_over_repetitions():
    values = np.random.default_rng(6).normal(0.03, 0.05, (6, 1)) + np.zeros((6, 20))
    effect = estimate_effect([values])
    expected = stats.ttest_1samp(values[:, 0], 0.0)
    interval = expected.confidence_interval(0.95)
    assert effect.p == pytest.approx(expected.pvalue)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))
    assert effect.components["patient"] == effect.components["residual"] == 0


@pytest.mark.filterwarnings("ignore:The MLE may be on the boundary")
def test_balanced_data_give_the_mixed_model_of_statsmodels():
    mixed = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    pandas = pytest.importorskip("pandas")
    fold = averaged(planted(np.random.default_rng(7), effect=0.05, patients=12))[0]
    r, p = np.indices(fold.shape)
    table = pandas.DataFrame({"d": fold.ravel(), "r": r.ravel(), "p": p.ravel()})
    model = mixed.MixedLM.from_formula(
        "d ~ 1",
        table,
        groups=np.zeros(fold.size),
        vc_formula={"patient": "0 + C(p)", "repetition": "0 + C(r)"},
    )
    fitted = model.fit(reml=True)
    effect = estimate_effect([fold])
    assert effect.mean == pytest.approx(fitted.params["Intercept"])
    names = model.exog_vc.names
    components = dict(zip(names, fitted.vcomp, strict=True)) | {"residual": fitted.scale}
    assert effect.components == pytest.approx(components, rel=0.01)
    assert estimate_crossed_mean([fold]).variance ** 0.5 == pytest.approx(
        fitted.bse["Intercept"], rel=0.01
    )


def test_components_are_unbiased():
    generator = np.random.default_rng(8)
    found = [estimate_crossed_mean(averaged(planted(generator, folds=2))) for _ in range(500)]
    for name, deviation in (("repetition", 0.04), ("patient", 0.04), ("residual", 0.05 / 2**0.5)):
        estimates = [getattr(each, name) for each in found]
        assert np.mean(estimates) == pytest.approx(deviation**2, rel=0.08)


def test_a_negative_component_is_zero_and_the_interval_no_narrower_than_without_it():
    """Rows with equal means: the repetition's moment estimate is negative."""
    fold = averaged(planted(np.random.default_rng(9)))[0]
    fold -= fold.mean(1, keepdims=True) - 0.02
    found = estimate_crossed_mean([fold])
    assert found.repetition == 0
    over_patients = fold.mean(0).var(ddof=1) / fold.shape[1]
    assert found.variance == pytest.approx(over_patients)


def test_order_of_patients_repetitions_and_folds_does_not_matter_and_the_sign_flips():
    generator = np.random.default_rng(10)
    folds = averaged(planted(generator, folds=2, effect=0.03))
    effect = estimate_effect(folds)
    shuffled = [generator.permutation(generator.permutation(fold, 0), 1) for fold in folds[::-1]]
    other, flipped = estimate_effect(shuffled), estimate_effect([-fold for fold in folds])
    assert (other.mean, other.low, other.p) == pytest.approx((effect.mean, effect.low, effect.p))
    assert sorted(other.per_repetition) == pytest.approx(sorted(effect.per_repetition))
    assert (flipped.mean, flipped.low) == pytest.approx((-effect.mean, -effect.high))


def test_folds_of_unequal_size_weigh_by_patients():
    generator = np.random.default_rng(11)
    folds = [
        averaged(planted(generator, patients=n, repetitions=r))[0] for n, r in ((5, 4), (15, 3))
    ]
    effect = estimate_effect(folds)
    assert effect.mean == pytest.approx(0.25 * folds[0].mean() + 0.75 * folds[1].mean())
    assert (effect.repetitions, effect.patients) == (7, 20)


def test_under_five_repetitions_there_is_no_p_value_but_every_pair():
    fold = averaged(planted(np.random.default_rng(12), repetitions=4, effect=0.5))[0]
    effect = estimate_effect([fold])
    assert effect.p is None
    assert effect.low < effect.mean < effect.high
    assert effect.per_repetition == pytest.approx(tuple(fold.mean(1)))


@pytest.mark.parametrize(("folds", "repetitions", "tested"), [(3, 2, False), (2, 3, True)])
def test_over_folds_four_repetitions_beyond_the_first_are_needed(folds, repetitions, tested):
    study = planted(np.random.default_rng(18), folds=folds, repetitions=repetitions)
    effect = estimate_effect(averaged(study))
    assert (effect.p is not None) == tested
    assert effect.folds == folds


def test_one_repetition_has_no_interval():
    effect = estimate_effect([np.array([[0.1, 0.2, 0.3]])])
    assert effect.mean == pytest.approx(0.2)
    assert np.isnan([effect.low, effect.high]).all()
    assert effect.p is None


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (0.1, None)])
def test_without_any_scatter_the_interval_is_a_point(value, p):
    effect = estimate_effect([np.full((6, 7), value)])
    assert (effect.low, effect.high) == pytest.approx((value, value))
    assert effect.p == p


def test_a_patient_without_a_value_is_left_out_everywhere_and_counted():
    fold = averaged(planted(np.random.default_rng(13)))[0]
    fold[2, 4] = np.nan
    effect = estimate_effect([fold])
    assert effect.left_out == 1
    assert effect.mean == pytest.approx(np.delete(fold, 4, axis=1).mean())


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([np.array([[1.0, 2.0], [np.nan, np.nan]])], r"fold 0 .*repetitions \[1\] have no value"),
        ([np.ones((2, 2)), np.ones(3)], r"fold 1 .*shape \(3,\)"),
        (np.ones((2, 3)), "Put a single fold into a list"),
        ([], "no fold"),
        ([np.where(np.eye(3) > 0, np.nan, 1.0)], r"only 0 of 3 patients"),
        ([np.where(np.eye(3, 5) > 0, np.nan, 1.0)], r"only 2 of 5 patients"),
    ],
)
def test_what_cannot_be_analysed_is_refused_by_name(folds, message):
    with pytest.raises(ValueError, match=message):
        estimate_effect(folds)


def with_seeds(generator: np.random.Generator, seeds: int, deviation: float) -> list[np.ndarray]:
    """8 repetitions over `seeds` pre-training runs, each of which shifts all of its repetitions."""
    shift = np.repeat(generator.normal(0, deviation, seeds), 8 // seeds)
    return [averaged(planted(generator))[0] + shift[:, None]]


def test_a_shared_pretraining_seed_is_accounted_for_where_enough_seeds_exist():
    generator = np.random.default_rng(14)
    groups = [[0, 0, 1, 1, 2, 2, 3, 3]]
    studies = [with_seeds(generator, 4, 0.04) for _ in range(800)]
    aware = [estimate_effect(study, groups=groups) for study in studies]
    unaware = [estimate_effect(study) for study in studies]
    assert np.mean([effect.p < 0.05 for effect in aware]) < 0.075
    assert np.mean([effect.p < 0.05 for effect in unaware]) > 0.085
    assert aware[0].covers == ("repetition", "patient", "pretraining_seed")
    assert unaware[0].covers == ("repetition", "patient")
    between = np.mean([effect.components["pretraining_seed"] for effect in aware])
    assert between == pytest.approx(0.04**2, rel=0.15)


def test_the_interval_over_seeds_is_that_of_the_seeds_means():
    study = with_seeds(np.random.default_rng(19), 4, 0.3)
    effect = estimate_effect(study, groups=[[0, 0, 1, 1, 2, 2, 3, 3]])
    means = [study[0].reshape(4, 2, -1).mean(1)]
    of_means = estimate_effect(means)
    assert (effect.low, effect.high) == pytest.approx((of_means.low, of_means.high))


def test_two_seeds_are_too_few_and_the_effect_says_so():
    study = with_seeds(np.random.default_rng(15), 2, 0.04)
    effect = estimate_effect(study, groups=[[0] * 4 + [1] * 4])
    assert effect.covers == ("repetition", "patient")
    assert effect.low == estimate_effect(study).low
    assert effect.components["pretraining_seed"] >= 0
    with pytest.raises(ValueError, match="one seed per repetition"):
        estimate_effect(study, groups=[[0, 1]])


def test_two_seeds_in_each_of_two_folds_are_enough():
    generator = np.random.default_rng(17)
    study = [*with_seeds(generator, 2, 0.04), *with_seeds(generator, 2, 0.04)]
    effect = estimate_effect(study, groups=[[0] * 4 + [1] * 4] * 2)
    assert "pretraining_seed" in effect.covers


def test_one_degree_of_freedom_counts():
    """Two repetitions of one patient; and patients of a fold that was run once."""
    found = estimate_crossed_mean([np.array([[1.0], [3.0]])])
    assert (found.freedom, found.variance) == (1, 1)  # that of (1, 3), over 2
    assert np.isnan(found.patient)
    found = estimate_crossed_mean([np.array([[1.0], [3.0]]), np.array([[1.0, 2.0, 6.0]])])
    assert found.patient == pytest.approx(7)
    assert np.isnan(found.residual)


def test_a_seed_of_its_own_for_every_repetition_changes_nothing():
    study = with_seeds(np.random.default_rng(16), 8, 0.04)
    effect = estimate_effect(study, groups=[list("abcdefgh")])
    unaware = estimate_effect(study)
    assert (effect.low, effect.high) == pytest.approx((unaware.low, unaware.high))
    assert "pretraining_seed" in effect.covers
    assert "pretraining_seed" not in effect.components


def test_holm_is_that_of_statsmodels_and_skips_what_was_not_tested():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    values = [0.04, 0.001, 0.03, 0.03, 0.9, 0.012]
    expected = multitest.multipletests(values, method="holm")[1]
    corrected = correct_p_values([*values[:2], None, *values[2:]])
    assert corrected.pop(2) is None
    assert corrected == pytest.approx(list(expected))


def test_holm_by_hand():
    assert correct_p_values([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert correct_p_values([None, 0.6, 0.7]) == [None, 1.0, 1.0]
    assert correct_p_values([]) == []


def test_effects_are_corrected_together():
    generator = np.random.default_rng(17)
    effects = {
        name: estimate_effect(averaged(planted(generator, effect=0.05, repetitions=r)))
        for name, r in (("a", 8), ("b", 3), ("c", 8))
    }
    corrected = correct_effects(effects)
    assert list(corrected) == ["a", "b", "c"]
    assert corrected["b"].p_holm is None
    assert min(c.p_holm for c in (corrected["a"], corrected["c"])) == pytest.approx(
        2 * min(effects["a"].p, effects["c"].p)
    )
    assert corrected["a"].low == effects["a"].low
