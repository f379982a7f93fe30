"""BIDS folders: subjects, sessions, runs, chosen entities, labels in derivatives."""

from __future__ import annotations

from pathlib import Path

import pytest
from native import intensities, values_in, write

from nnssl.cli import convert as command
from nnssl.convert.bids import make_bids_spec
from nnssl.convert.engine import ConversionTarget, check_source, convert
from nnssl.convert.planning import Conversion, plan_cases
from nnssl.convert.sources import ConversionError

MASK = "derivatives/manual/label-lesion_mask"
STEMS = ["sub-01/ses-02/anat/sub-01_ses-02", "sub-01/ses-03/anat/sub-01_ses-03"]
STEMS += ["sub-02/anat/sub-02_run-1", "sub-02/anat/sub-02_run-2"]


def bids(root: Path, t1: str = "_T1w") -> Path:
    """Two subjects, with sessions and with runs; two channels and a mask of each image."""
    for number, stem in enumerate(STEMS):
        write(root / f"{stem}{t1}.nii.gz", intensities(number))
        write(root / f"{stem}_FLAIR.nii.gz", intensities(10 + number))
        write(root / f"derivatives/fmriprep/{stem}_desc-preproc_T1w.nii.gz", intensities(20))
        label = values_in((0, number + 1))
        write(root / f"derivatives/manual/{stem}_space-orig_label-lesion_mask.nii.gz", label)
        write(root / f"derivatives/manual/{stem}_label-edema_mask.nii.gz", values_in((0, 9)))
    write(root / "sourcedata" / STEMS[0].replace("/anat/", "/anat/old_") / "x.nii", intensities(1))
    return root


def plan(root: Path, *images: str, label: str | None = None):
    spec = make_bids_spec("B", images, label, ["lesion=any"])
    return plan_cases(Conversion(spec, root))


def test_cases_are_subjects_sessions_and_runs(tmp_path: Path):
    cases, problems = plan(bids(tmp_path), "T1=T1w", "FLAIR=FLAIR", label=MASK)
    assert not problems
    assert [(each.identifier, each.patient) for each in cases] == [
        ("sub-01_ses-02", "sub-01"),
        ("sub-01_ses-03", "sub-01"),
        ("sub-02_run-1", "sub-02"),
        ("sub-02_run-2", "sub-02"),
    ]
    for case, stem in zip(cases, STEMS, strict=True):
        assert case.images == ((f"{stem}_T1w.nii.gz",), (f"{stem}_FLAIR.nii.gz",))
        name = f"derivatives/manual/{stem}_space-orig_label-lesion_mask.nii.gz"
        assert case.label == (name,)


def test_entities_that_a_choice_names_choose_and_do_not_part_cases(tmp_path: Path):
    root = bids(tmp_path, "_acq-high_T1w")
    write(root / f"{STEMS[0]}_acq-low_T1w.nii.gz", intensities(7))
    cases, problems = plan(root, "T1=acq-high_T1w", "FLAIR=FLAIR", label=MASK)
    assert not problems
    assert [each.identifier for each in cases][:2] == ["sub-01_ses-02", "sub-01_ses-03"]
    _, problems = plan(root, "T1=acq-*_T1w", "FLAIR=FLAIR", label=MASK)
    assert "is there twice" in str(problems[0])
    assert len(plan(root, "T1=T1w")[0]) == 5  # every acquisition is a case
    with pytest.raises(ConversionError, match=r"acq-high_T1w, T1=acq-\*_T1w"):  # how to choose
        plan(root, "T1=T1w", "FLAIR=FLAIR", label=MASK)


def test_images_of_derivatives_are_chosen_by_their_folder_only(tmp_path: Path):
    cases, problems = plan(bids(tmp_path), "T1=derivatives/fmriprep/desc-preproc_T1w")
    assert not problems
    assert [case.images[0][0] for case in cases] == [
        f"derivatives/fmriprep/{stem}_desc-preproc_T1w.nii.gz" for stem in STEMS
    ]


def test_what_is_missing_or_lies_elsewhere_is_refused(tmp_path: Path):
    root = bids(tmp_path)
    (root / f"{STEMS[1]}_FLAIR.nii.gz").unlink()
    moved = root / f"derivatives/manual/{STEMS[2]}_space-orig_label-lesion_mask.nii.gz"
    write(moved, values_in((0, 1)), origin=(0, 0, 0))
    spec = make_bids_spec("B", ["T1=T1w", "FLAIR=FLAIR"], MASK, ["lesion=any"])
    with pytest.raises(ConversionError) as error:
        check_source(Conversion(spec, root))
    problems = [str(each) for each in error.value.problems]
    assert len(problems) == 2
    assert "sub-01_ses-03: image of channel FLAIR is missing" in problems[0]
    assert "sub-02_run-1: origin" in problems[1]
    for wrong in ("T1w.nii.gz", "acq_T1w", "sub-*/anat/"):
        with pytest.raises(ValueError, match="chooses no BIDS files; allowed"):
            make_bids_spec("B", [f"T1={wrong}"])


def test_the_command_converts_by_subject(tmp_path: Path, monkeypatch, capsys, tree):
    root = bids(tmp_path / "b")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    line = f"bids {root} -d 5 --name B --images T1=T1w FLAIR=FLAIR --workers 1"
    command.main([*line.split(), "--label", MASK, "--labels", "lesion=any"])
    assert "4 cases of 2 patients" in capsys.readouterr().out
    spec = make_bids_spec("B", ["T1=T1w", "FLAIR=FLAIR"], MASK, ["lesion=any"])
    target = ConversionTarget.of(tmp_path / "raw2", tmp_path / "pre2", 5, "B")
    convert(Conversion(spec, root), target)
    assert tree(target.raw) == tree(tmp_path / "raw" / "Dataset005_B")
