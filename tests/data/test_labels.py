"""Label budgets: nested, by patient, seeded, honest."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from nnssl.data.labels import LabelBudget, choose_labelled, refuse_budget_for_all, write_labelled
from nnssl.nnunet.cases import CaseRecord

RECORDS = {
    f"p{p:02d}_f{f}": CaseRecord(patient=f"p{p:02d}", dataset="d")
    for p in range(20)
    for f in (1, 9)
}
TRAIN = sorted(RECORDS)


def choose(**knobs):
    return choose_labelled(LabelBudget(**knobs), TRAIN, RECORDS)


def test_without_a_budget_all_training_cases():
    assert choose().cases == TRAIN
    assert choose().unit == "all"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("unit", ["patients", "volumes"])
def test_the_smaller_budget_lies_in_the_larger(unit, seed):
    chosen = [set(choose(**{unit: n, "seed": seed}).cases) for n in range(1, 21)]
    assert all(small < large for small, large in pairwise(chosen))


def test_patients_come_with_all_volumes():
    labelled = choose(patients=2)
    assert len(labelled.patients) == 2
    assert labelled.cases == sorted(f"{p}_f{f}" for p in labelled.patients for f in (1, 9))


def test_volumes_are_first_frames_of_different_patients_in_the_order_of_patients():
    for seed in range(5):
        two = choose(volumes=2, seed=seed)
        assert two.patients == choose(patients=2, seed=seed).patients
        assert [case[-2:] for case in two.cases] == ["f1", "f1"]
    assert {case[-2:] for case in choose(volumes=20).cases} == {"f1"}
    more = choose(volumes=21)
    assert [case for case in more.cases if case.endswith("f9")] == [
        f"{choose(patients=1).patients[0]}_f9"
    ]
    assert choose(volumes=40).cases == TRAIN


@pytest.mark.parametrize(
    ("percentage", "patients"), [(1, 1), (10, 2), (12.5, 2), (50, 10), (100, 20)]
)
def test_percentage_of_patients_at_least_one(percentage, patients):
    assert len(choose(percentage=percentage).patients) == patients


def test_seeds_draw_other_patients_and_order_of_cases_does_not_matter():
    assert len({tuple(choose(patients=1, seed=s).cases) for s in range(20)}) > 5
    backwards = choose_labelled(LabelBudget(patients=3), TRAIN[::-1], RECORDS)
    assert backwards == choose(patients=3)


def test_named_cases():
    assert choose(cases=["p03_f9", "p01_f1"]).cases == ["p01_f1", "p03_f9"]
    with pytest.raises(ValueError, match="p99_f1 are not training cases"):
        choose(cases=["p01_f1", "p99_f1"])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"patients": 21}, r"labels\.patients: found 21, but this fold has 20 patients"),
        ({"volumes": 41}, r"labels\.volumes: found 41, but this fold has 40 volumes"),
        ({"patients": 0}, "patients = 0 must be an integer of at least 1 or null"),
        (
            {"percentage": 0.0},
            r"percentage = 0\.0 must be a number above 0 and at most 100 or null",
        ),
        ({"percentage": 101}, "percentage = 101 must be"),
        ({"cases": []}, r"cases = \[\] must be a list \(not empty\), each a text"),
        ({"slices": 0}, "slices = 0 must be an integer of at least 1"),
        ({"slices": 3}, r"labels\.slices: found 3, .* 3D patches; .* for 2d only"),
        ({"patients": 1, "volumes": 2}, "found patients and volumes; allowed is one of"),
    ],
)
def test_bad_budgets(knobs, message):
    with pytest.raises(ValueError, match=message):
        choose(**knobs)


def test_budget_with_all_is_refused():
    refuse_budget_for_all(LabelBudget(), "all")
    refuse_budget_for_all(LabelBudget(patients=1), 0)
    with pytest.raises(ValueError, match=r"labels\.percentage: .* needs a numbered fold"):
        refuse_budget_for_all(LabelBudget(percentage=5), "all")


def test_record_states_unit_patients_volumes_slices_and_seed(tmp_path):
    labelled = choose(patients=2, seed=3)
    write_labelled(tmp_path, labelled, 17)
    stored = json.loads((tmp_path / "labelled_cases.json").read_text())
    assert stored == {
        "unit": "patients",
        "value": 2,
        "seed": 3,
        "patients": labelled.patients,
        "cases": labelled.cases,
        "slices": None,
        "number_of_patients": 2,
        "number_of_volumes": 4,
        "number_of_slices": 17,
    }
    assert "2 patients, 4 volumes" in labelled.describe()


def slices_of(number, seed=0):
    depth = {case: 3 + i % 4 for i, case in enumerate(TRAIN)}.__getitem__
    labelled = choose_labelled(LabelBudget(slices=number, seed=seed), TRAIN[::-1], RECORDS, depth)
    return {(case, index) for case, chosen in labelled.slices.items() for index in chosen}, labelled


def test_slices_are_nested_over_all_training_volumes():
    chosen = [slices_of(n)[0] for n in range(1, 60)]
    assert [len(places) for places in chosen] == list(range(1, 60))
    assert all(small < large for small, large in pairwise(chosen))
    assert len({case for case, _ in chosen[-1]}) > 20
    assert {index for _, index in chosen[-1]} == set(range(6))
    assert slices_of(5, seed=1)[0] != chosen[4]
    with pytest.raises(ValueError, match=r"labels\.slices: found 181, .* has 180 slices"):
        slices_of(181)


def test_a_budget_of_slices_names_its_cases_and_patients():
    places, labelled = slices_of(7)
    assert labelled.cases == sorted({case for case, _ in places})
    assert labelled.patients == sorted({case[:3] for case in labelled.cases})
    assert all(chosen == sorted(chosen) for chosen in labelled.slices.values())
    assert labelled.to_dict()["slices"] == labelled.slices


def test_two_people_of_one_name_in_two_datasets_are_two():
    names = {"a1": ("1", "A"), "a2": ("2", "A"), "b1": ("1", "B"), "b1x": ("1", "B")}
    records = {case: CaseRecord(*origin) for case, origin in names.items()}
    everyone = choose_labelled(LabelBudget(patients=3), list(names), records)
    assert everyone.to_dict()["number_of_patients"] == 3
    for seed in range(5):
        one = choose_labelled(LabelBudget(patients=1, seed=seed), list(names), records)
        assert one.cases in (["a1"], ["a2"], ["b1", "b1x"])
