"""Members, folds and settings of a pool, before anything is written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnssl.data.pool.members import PoolMember, assemble
from nnssl.data.pool.settings import (
    choose_settings,
    find_median_shape,
    make_isotropic,
    make_window,
    transpose_orientation,
)
from nnssl.nnunet.cases import CaseRecord

WINDOW = make_window(-1000, 1000)


def member(
    number=27, origin="Heart", patients=4, folds=2, channels=("MRI",), **changes
) -> PoolMember:
    """`patients` patients p0, p1, ... with one case each; fold f validates on patient f."""
    cases = [f"p{p}_case" for p in range(patients)]
    made = PoolMember(
        folder=f"Dataset{number:03d}_{origin}",
        channels=channels,
        images={c: tuple(f"/raw/{c}_{i:04d}.nii.gz" for i in range(len(channels))) for c in cases},
        labels={case: f"/raw/{case}.nii.gz" for case in cases},
        records={case: CaseRecord(case.split("_")[0], origin) for case in cases},
        held_out=frozenset(),
        splits=[
            {"train": [c for c in cases if c != cases[f]], "val": [cases[f]]} for f in range(folds)
        ],
        spacings=np.array([[10.0, 1.0, 2.0]] * patients),
        shapes=np.array([[8, 100, 60]] * patients),
        relative_size=1.0,
        reader="SimpleITKIO",
    )
    return replace(made, **changes)


def pool_of(*members: PoolMember):
    return assemble("Dataset900_Pool", members)


def test_a_fold_joins_the_same_folds_of_all_members():
    pool = pool_of(member(4, "Brain", 3, folds=3), member(27, "Heart", 4, folds=2))
    assert len(pool.splits) == 2
    assert pool.splits[1]["val"] == ["004_p1_case", "027_p1_case"]
    assert pool.splits[1]["train"] == [
        "004_p0_case",
        "004_p2_case",
        "027_p0_case",
        "027_p2_case",
        "027_p3_case",
    ]
    assert [case.identifier for case in pool.cases] == sorted(
        {case for fold in pool.splits for side in fold.values() for case in side}
    )


def test_every_channel_is_a_case_of_its_own_on_the_side_of_its_patient():
    pool = pool_of(member(5, "Two", channels=("CT", "T1")))
    assert pool.splits[0]["val"] == ["005_p0_case_c0", "005_p0_case_c1"]
    second = next(case for case in pool.cases if case.identifier == "005_p0_case_c1")
    assert (second.image.name, second.index, second.modality) == ("p0_case_0001.nii.gz", 0, "T1")


def test_channels_of_one_file_are_told_apart_by_their_number():
    two = member(5, "Two", channels=("R", "G"))
    one_file = replace(two, images={case: files[:1] for case, files in two.images.items()})
    places = [(c.image.name, c.index) for c in pool_of(one_file).cases[:2]]
    assert places == [("p0_case_0000.nii.gz", 0), ("p0_case_0000.nii.gz", 1)]


def test_equal_patient_keys_of_two_origins_are_two_patients():
    shifted = [{"train": ["p0_case"], "val": ["p1_case"]}, {"train": ["p1_case"], "val": []}]
    assert pool_of(member(4, "Brain"), member(27, "Heart", splits=shifted)).splits


SHIFTED = [
    {"train": ["p0_case", "p2_case", "p3_case"], "val": ["p1_case"]},
    {"train": ["p1_case", "p2_case"], "val": ["p3_case"]},
]


@pytest.mark.parametrize("origin", ["Heart", "HeartCT"])
def test_a_patient_whom_another_member_holds_back_is_left_out(origin):
    """By record, or by the name alone: MR and CT of the same people."""
    pool = pool_of(member(27, "Heart"), member(28, origin, splits=SHIFTED))
    assert pool.splits[0] == {
        "train": ["027_p2_case", "027_p3_case", "028_p2_case", "028_p3_case"],
        "val": ["027_p0_case", "027_p1_case", "028_p0_case", "028_p1_case"],
    }
    assert "fold 0 leaves out 2 training cases" in pool.describe_moved()[0]
    assert "027_p1_case, 028_p0_case" in pool.describe_moved()[0]
    same = pool_of(member(27, "Heart"), member(28, origin))
    assert same.splits == same.union
    assert same.describe_moved() == []


def test_copies_join_patients_of_other_names():
    names = [f"q{p}_case" for p in range(4)]
    records = {case: CaseRecord(case[:2], "Other") for case in names}
    split = [{"train": names[:3], "val": names[3:]}, {"train": names[1:], "val": names[:1]}]
    paths = {case: (f"/raw/{case}.nii.gz",) for case in names}
    labels = {case: f"/raw/{case}.nii.gz" for case in names}
    other = member(28, "Other", records=records, splits=split, images=paths, labels=labels)
    members, copies = (member(27, "Heart"), other), [("027_p0_case", "028_q1_case")]
    plain, pool = assemble("Pool", members), assemble("Pool", members, copies)
    assert plain.splits == plain.union
    assert pool.splits[0]["val"] == ["027_p0_case", "028_q1_case", "028_q3_case"]
    assert "028_q1_case" not in pool.splits[0]["train"]
    assert pool.splits[1] == plain.splits[1]
    assert pool.job == plain.job


def test_a_patient_of_imagests_is_left_out_of_every_fold():
    tested = member(28, "Other", held_out=frozenset({("Heart", "p2")}))
    for fold in pool_of(member(27, "Heart"), tested).splits:
        assert "027_p2_case" in fold["val"]


def test_a_pool_that_has_nothing_to_train_on_is_refused():
    two = [{"train": ["p0_case"], "val": ["p1_case"]}, {"train": ["p1_case"], "val": ["p0_case"]}]
    with pytest.raises(ValueError, match=r"nothing is left to train on in fold \[0, 1\]"):
        pool_of(member(27, "Heart", 2), member(28, "Heart", 2, splits=two))


def test_a_dataset_is_named_once():
    with pytest.raises(ValueError, match="named twice"):
        pool_of(member(27), member(27))


def test_the_job_changes_with_images_and_folds():
    one = pool_of(member())
    moved = {**member().images, "p0_case": ("/raw/other_0000.nii.gz",)}
    assert one.job == pool_of(member()).job
    assert one.job != pool_of(member(images=moved)).job
    assert one.job != pool_of(member(splits=member().splits[:1])).job


@pytest.mark.parametrize(
    ("policy", "planned", "spacing"),
    [
        ("target", [3.0, 3.0], [3.0, 3.0]),
        ("own", [3.0, 3.0], [1.0, 2.0]),
        ("own", [5.0, 3.0, 3.0], [10.0, 1.0, 2.0]),
        ("isotropic", [9.0, 1.0, 4.0], [2.0, 2.0, 2.0]),
    ],
)
def test_spacing_policies(policy, planned, spacing):
    case = pool_of(member()).cases[0]
    assert choose_settings(case, policy, planned, WINDOW).spacing == pytest.approx(spacing)


def test_normalisation_goes_by_modality():
    ct, mr = pool_of(member(5, "Two", channels=("ct", "T1"), relative_size=0.5)).cases[:2]
    ct_settings, mr_settings = (choose_settings(c, "own", [1.0, 1.0], WINDOW) for c in (ct, mr))
    assert (ct_settings.normalization, ct_settings.use_mask) == ("CTNormalization", False)
    assert (mr_settings.normalization, mr_settings.use_mask) == ("ZScoreNormalization", True)
    assert (ct_settings.foreground, mr_settings.foreground) == ("hounsfield", "otsu")
    whole = pool_of(member()).cases[0]
    assert not choose_settings(whole, "own", [1.0, 1.0], WINDOW).use_mask


def test_the_window_becomes_minus_two_to_two():
    statistics = make_window(-200, 600)
    ends = np.array([statistics["percentile_00_5"], statistics["percentile_99_5"]])
    assert ((ends - statistics["mean"]) / statistics["std"]).tolist() == [-2.0, 2.0]
    with pytest.raises(ValueError, match="LOW below HIGH"):
        make_window(100, 100)


def test_the_coarsest_axis_comes_first():
    sagittal = member(spacings=np.array([[1.0, 1.5, 4.0]] * 4))
    assert sagittal.transpose == [2, 0, 1]
    assert sagittal.own_spacing == [4.0, 1.0, 1.5]


def test_the_median_shape_is_that_after_resampling():
    pool = pool_of(member())
    settings = {
        pool.members[0].folder: choose_settings(pool.cases[0], "target", [2.0, 2.0], WINDOW)
    }
    assert find_median_shape(pool, settings) == [50.0, 60.0]


def test_orientation_follows_the_transposition():
    assert transpose_orientation("LPS", [0, 1, 2]) == "LPS"
    # array (z, y, x) grows towards (S, P, L); stored (x, z, y) towards (L, S, P)
    assert transpose_orientation("LPS", [2, 0, 1]) == "PSL"
    assert transpose_orientation(None, [2, 0, 1]) is None


def test_isotropic_takes_the_two_finest_axes():
    assert make_isotropic([8.0, 2.0, 0.5]) == [1.0, 1.0, 1.0]


def test_images_beside_the_pool_are_referenced_relatively(tmp_path):
    near = member(
        images={"p0_case": (str(tmp_path / "Dataset027_Heart" / "imagesTr" / "a_0000.nii.gz"),)},
        labels={"p0_case": "/far/a.nii.gz"},
        splits=[{"train": ["p0_case"], "val": []}],
    )
    entry = pool_of(near).description(tmp_path)["dataset"]["027_p0_case"]
    assert entry["images"] == ["../Dataset027_Heart/imagesTr/a_0000.nii.gz"]
    assert entry["label"] == "/far/a.nii.gz"
