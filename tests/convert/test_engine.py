"""The converter's engine on a miniature of ACDC, whole and damaged."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnssl.convert import engine, tasks
from nnssl.convert.engine import ConversionTarget, convert
from nnssl.convert.planning import Conversion
from nnssl.convert.sources import ConversionError
from nnssl.convert.spec import DatasetSpec
from nnssl.convert.tasks import VolumeTask
from nnssl.nnunet.cases import read_cases
from nnssl.nnunet.splits import check_split

CASE = "patient002_frame12"


@pytest.fixture
def target(tmp_path: Path) -> ConversionTarget:
    return ConversionTarget.of(tmp_path / "raw", tmp_path / "preprocessed", 27, "ACDC")


def refused(spec: DatasetSpec, source: Path, target: ConversionTarget) -> str:
    """The report of a refused conversion, which must leave nothing behind."""
    with pytest.raises(ConversionError) as caught:
        convert(Conversion(spec, source), target)
    assert not target.raw.parent.exists()
    assert not target.preprocessed.parent.exists()
    return str(caught.value)


def test_layout_of_the_written_dataset(
    tree, miniature, spec: DatasetSpec, target: ConversionTarget
):
    convert(Conversion(spec, miniature.root), target)
    assert os.listdir(target.raw.parent) == ["Dataset027_ACDC"]
    files = set(tree(target.raw))
    assert {
        "imagesTr/patient001_frame01_0000.nii.gz",
        "labelsTr/patient001_frame12.nii.gz",
    } <= files
    assert {
        "imagesTr/patient004_frame04_0000.nii.gz",
        "labelsTs/patient101_frame01.nii.gz",
    } <= files
    assert len(files) == 4 * 6 + 4 * 2 + 4
    assert not [name for name in files if "4d" in name or "_gt" in name]
    dataset = json.loads((target.raw / "dataset.json").read_text())
    assert dataset["channel_names"] == {"0": "cineMRI"}
    assert dataset["labels"] == {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
    assert (dataset["numTraining"], dataset["file_ending"]) == (12, ".nii.gz")
    assert sorted(tree(target.preprocessed)) == ["nnssl/cases.json", "splits_final.json"]


def test_records(miniature, spec: DatasetSpec, target: ConversionTarget):
    convert(Conversion(spec, miniature.root), target)
    cases = json.loads((target.preprocessed / "nnssl" / "cases.json").read_text())
    assert cases == json.loads((target.raw / "cases.json").read_text())
    entry = cases["cases"][CASE]
    assert (entry["patient"], entry["dataset"]) == ("patient002", "ACDC")
    assert (entry["modality"], entry["orientation"]) == ("cineMRI", "LIP")  # y runs to -z: inferior
    assert entry["source"] == f"training/patient002/{CASE}.nii.gz"
    conversion = json.loads((target.raw / "conversion.json").read_text())
    assert conversion["citation"] == spec.citation
    assert conversion["decisions"]["n4"] is False
    assert len(conversion["files"]) == 32
    assert conversion["files"][f"imagesTr/{CASE}_0000.nii.gz"]["sha256"] == entry["sha256"]


def test_folds_keep_patients_together(miniature, spec: DatasetSpec, target: ConversionTarget):
    convert(Conversion(spec, miniature.root), target)
    splits = json.loads((target.preprocessed / "splits_final.json").read_text())
    assert splits == json.loads((target.raw / "splits_final.json").read_text())
    everyone = {f"patient{n:03d}" for n in range(1, 7)}
    cases = read_cases(target.preprocessed, splits[0]["train"] + splits[0]["val"])
    check_split(splits, cases)
    assert len(splits) == 5
    assert {record.patient for record in cases.values()} == everyone
    held_out = [case for split in splits for case in split["val"]]
    assert sorted(held_out) == sorted(cases)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_voxels_and_geometry_are_carried_exactly(
    two_patients, tmp_path: Path, spec: DatasetSpec, target: ConversionTarget, ending: str
):
    source = two_patients(ending=ending)
    home = source.root / "training" / "patient002"
    convert(Conversion(spec, source.root), target)
    for stem, name in (("", f"imagesTr/{CASE}_0000"), ("_gt", f"labelsTr/{CASE}")):
        before = sitk.ReadImage(str(home / f"{CASE}{stem}{ending}"))
        after = sitk.ReadImage(str(target.raw / f"{name}.nii.gz"))
        np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (before, after)))
        np.testing.assert_allclose(after.GetSpacing(), source.SPACING, rtol=1e-6)
        np.testing.assert_allclose(after.GetOrigin(), source.ORIGIN, rtol=1e-6)
        np.testing.assert_allclose(after.GetDirection(), source.DIRECTION, atol=1e-6)
        assert after.GetPixelID() == before.GetPixelID()


@pytest.mark.parametrize("n4", [False, True])
def test_folders_named_like_files_are_not_read(
    miniature, spec, target: ConversionTarget, monkeypatch, n4: bool
):
    monkeypatch.setattr(tasks, "correct_bias_field", lambda image: image)
    home = miniature.root / "training" / "patient002"
    before = sitk.GetArrayFromImage(sitk.ReadImage(str(home / f"{CASE}.nii.gz")))
    for stem in ("", "_gt"):
        (home / f"{CASE}{stem}.nii").mkdir()
    checked = {
        each.case.identifier: each
        for each in convert(Conversion(spec, miniature.root, n4=n4), target)
    }
    assert checked[CASE].values == (0, 1, 2, 3)
    after = sitk.ReadImage(str(target.raw / "imagesTr" / f"{CASE}_0000.nii.gz"))
    np.testing.assert_array_equal(before, sitk.GetArrayFromImage(after))


@pytest.mark.parametrize(
    ("training", "testing", "below"),
    [
        ("database/training", "database/testing", "."),
        ("database/training", "database/testing", "database"),
        ("training/training", "testing/testing", "."),
        ("training", None, "training"),
        (".", None, "."),
    ],
)
def test_other_layouts(
    two_patients,
    tmp_path: Path,
    spec: DatasetSpec,
    target: ConversionTarget,
    training: str,
    testing: str | None,
    below: str,
):
    source = two_patients(training)
    if testing:
        source.patient(testing, 101)
    checked = convert(Conversion(spec, source.root / below), target)
    parts = [each.case.part for each in checked]
    assert (parts.count("Tr"), parts.count("Ts")) == (4, 2 if testing else 0)
    assert (target.raw / "imagesTs").exists() == bool(testing)


def test_a_folder_of_test_patients_is_not_taken_for_training(
    miniature, spec: DatasetSpec, target: ConversionTarget
):
    assert "no complete training case" in refused(spec, miniature.root / "testing", target)


def test_test_cases_without_any_labels_are_fine(
    two_patients, tmp_path: Path, spec, target: ConversionTarget
):
    source = two_patients()
    source.patient("testing", 101, labels=False)
    convert(Conversion(spec, source.root), target)
    assert len(os.listdir(target.raw / "imagesTs")) == 2
    assert not (target.raw / "labelsTs").exists()


def test_some_test_cases_without_labels_are_named(miniature, spec, target: ConversionTarget):
    (miniature.root / "testing/patient102/patient102_frame01_gt.nii.gz").unlink()
    report = refused(spec, miniature.root, target)
    assert "patient102_frame01: label is missing; other test cases have one" in report
    assert "patient101" not in report


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


ZERO = np.zeros((3, 6, 5), np.uint8)
LABELS = {
    "wrong shape": (ZERO[:2], {}, "size (5, 6, 3) of the image, (5, 6, 2)"),
    "four axes": (np.stack([ZERO, ZERO]), {}, "a volume of 3 axes"),
    "spacing": (ZERO, {"spacing": (1.5, 1.25, 9.0)}, "spacing"),
    "origin": (ZERO, {"origin": (0.0, 0.0, 0.0)}, "origin"),
    "unknown label": (ZERO + 7, {}, "values [7]; allowed: 0 background, 1 RV"),
    "fraction": (np.full(ZERO.shape, 0.5, np.float32), {}, "[0.5]"),
}
DAMAGES = {
    "missing label": (lambda h: (h / f"{CASE}_gt.nii.gz").unlink(), [CASE, "label is missing"]),
    "missing image": (
        lambda h: (h / f"{CASE}.nii.gz").unlink(),
        [CASE, "image of channel cineMRI is missing"],
    ),
    "missing frame": (
        lambda h: [(h / f"{CASE}{end}.nii.gz").unlink() for end in ("", "_gt")],
        ["patient002: frame 12 (ES in Info.cfg) has no image; found ['01']"],
    ),
    "truncated gzip": (lambda h: truncate(h / f"{CASE}.nii.gz"), [CASE, "truncated"]),
    "not gzip": (
        lambda h: (h / f"{CASE}.nii.gz").write_bytes(b"x" * 999),
        [CASE, "cannot be read"],
    ),
    "empty file": (lambda h: (h / f"{CASE}.nii.gz").write_bytes(b""), [CASE, f"{CASE}.nii.gz"]),
    "no Info.cfg": (lambda h: (h / "Info.cfg").unlink(), ["patient002", "Info.cfg is missing"]),
    "bad Info.cfg": (lambda h: (h / "Info.cfg").write_text("ED: one"), ["patient002", "'ES: <"]),
    "duplicate": (
        lambda h: shutil.copytree(h, h.parent / "training" / h.name),
        ["is there twice", "training/training/patient002"],
    ),
    "two endings": (
        lambda h: (h / f"{CASE}.nii").write_bytes(
            gzip.decompress((h / f"{CASE}.nii.gz").read_bytes())
        ),
        ["is there twice", f"the other is training/patient002/{CASE}.nii"],
    ),
    "patient in both sets": (
        lambda h: shutil.copytree(h, h.parents[1] / "testing" / h.name),
        ["patient002: is in the training and in the test set", f"{CASE}: is there twice"],
    ),
    "empty folder": (lambda h: (h.parent / "patient050").mkdir(), ["patient050", "holds no image"]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_nothing_is_written(
    miniature, spec: DatasetSpec, target: ConversionTarget, name: str
):
    damage, words = DAMAGES[name]
    damage(miniature.root / "training" / "patient002")
    report = refused(spec, miniature.root, target)
    for word in words:
        assert word in report
    assert "patient001" not in report


def test_an_unreadable_folder_is_named(
    miniature, spec: DatasetSpec, target: ConversionTarget, monkeypatch
):
    """Root may read everything, so the refusal of the system is imitated."""
    real = os.scandir

    def scandir(path):
        if Path(path).name == "patient002":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    report = refused(spec, miniature.root, target)
    assert "training/patient002: folder cannot be read (Permission denied)" in report


@pytest.mark.parametrize("name", LABELS)
def test_wrong_labels_are_named(miniature, spec: DatasetSpec, target: ConversionTarget, name: str):
    values, geometry, words = LABELS[name]
    path = miniature.root / "training" / "patient002" / f"{CASE}_gt.nii.gz"
    miniature.volume(path, values, **geometry)
    report = refused(spec, miniature.root, target)
    assert f"{CASE}: " in report
    assert words in report
    assert "patient001" not in report


def test_a_truncated_plain_nifti_is_named(
    two_patients, tmp_path: Path, spec: DatasetSpec, target: ConversionTarget
):
    source = two_patients(ending=".nii")
    home = source.root / "training" / "patient002"
    truncate(home / f"{CASE}.nii")
    assert f"{CASE}.nii is truncated" in refused(spec, source.root, target)


def test_not_finite_image_is_named(miniature, spec: DatasetSpec, target: ConversionTarget):
    home = miniature.root / "training" / "patient002"
    miniature.volume(home / f"{CASE}.nii.gz", np.full(ZERO.shape, np.nan, np.float32))
    assert "not finite" in refused(spec, miniature.root, target)


def test_all_bad_cases_are_in_one_report(miniature, spec: DatasetSpec, target: ConversionTarget):
    for number in (1, 3):
        home = miniature.root / "training" / f"patient{number:03d}"
        truncate(home / f"patient{number:03d}_frame12.nii.gz")
    (miniature.root / "training/patient005/patient005_frame01_gt.nii.gz").unlink()
    report = refused(spec, miniature.root, target)
    assert report.startswith("3 problems")
    for case in ("patient001_frame12", "patient003_frame12", "patient005_frame01"):
        assert case in report


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_wrong_source_says_where_to_get_the_data(
    tmp_path: Path, spec, target: ConversionTarget, name: str
):
    (tmp_path / "empty").mkdir()
    report = refused(spec, tmp_path / name, target)
    assert "https://www.creatis" in report
    assert "training/patient001/Info.cfg" in report


def test_running_again_changes_nothing(
    tree, miniature, spec: DatasetSpec, target: ConversionTarget
):
    convert(Conversion(spec, miniature.root), target)
    before = {path: path.stat().st_mtime_ns for path in target.raw.rglob("*")}
    shutil.rmtree(target.preprocessed)
    convert(Conversion(spec, miniature.root), target)
    assert before == {path: path.stat().st_mtime_ns for path in target.raw.rglob("*")}
    assert (target.preprocessed / "splits_final.json").exists()


def test_running_again_keeps_the_users_own_folds(miniature, spec, target: ConversionTarget):
    convert(Conversion(spec, miniature.root), target)
    (target.preprocessed / "splits_final.json").write_text("[]")
    convert(Conversion(spec, miniature.root), target)
    assert (target.preprocessed / "splits_final.json").read_text() == "[]"


def test_other_sources_or_settings_are_refused(tree, miniature, spec, target: ConversionTarget):
    convert(Conversion(spec, miniature.root), target)
    before = tree(target.raw)
    with pytest.raises(ValueError, match="other files or settings"):
        convert(Conversion(spec, miniature.root, n4=True), target)
    with pytest.raises(ValueError, match="other files or settings"):
        convert(Conversion(replace(spec, seed=1), miniature.root), target)
    miniature.patient("training", 9)
    with pytest.raises(ValueError, match="other files or settings"):
        convert(Conversion(spec, miniature.root), target)
    assert tree(target.raw) == before


def test_leftover_records_of_other_sources_are_refused(
    two_patients, spec, target: ConversionTarget
):
    source = two_patients()
    convert(Conversion(spec, source.root), target)
    shutil.rmtree(target.raw)
    convert(Conversion(spec, source.root), target)
    shutil.rmtree(target.raw)
    source.patient("training", 3)
    with pytest.raises(ValueError, match=r"cases\.json belongs to a conversion of other files"):
        convert(Conversion(spec, source.root), target)
    assert os.listdir(target.raw.parent) == []


def test_the_wording_of_a_spec_changes_no_job(tree, two_patients, spec, target: ConversionTarget):
    source = two_patients()
    convert(Conversion(spec, source.root), target)
    before = tree(target.raw)
    convert(
        Conversion(replace(spec, citation="new", layout="new"), source.root / "training"), target
    )
    assert tree(target.raw) == before


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    written: list[str] = []
    original = engine.write_volume

    def perform(task: VolumeTask, conversion: Conversion, folder: Path) -> None:
        goal = folder / task.target
        if len(written) == count:
            goal.with_name(f".part_{goal.name}").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(goal.name)
        original(task, conversion, folder)

    monkeypatch.setattr(engine, "write_volume", perform)
    return written


def test_an_interrupted_run_resumes(
    tree, miniature, spec, target: ConversionTarget, tmp_path, monkeypatch
):
    whole = ConversionTarget.of(tmp_path / "other", tmp_path / "other_preprocessed", 27, "ACDC")
    convert(Conversion(spec, miniature.root), whole)
    first = interrupt_after(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        convert(Conversion(spec, miniature.root), target)
    assert not target.raw.exists()
    assert not target.preprocessed.exists()
    monkeypatch.undo()
    rest = interrupt_after(-1, monkeypatch)
    convert(Conversion(spec, miniature.root), target)
    assert len(first) == 5
    assert not set(first) & set(rest)
    assert len(first) + len(rest) == 32
    assert tree(target.raw) == tree(whole.raw)
    assert os.listdir(target.raw.parent) == ["Dataset027_ACDC"]


def test_an_interrupted_run_of_other_sources_starts_afresh(
    tree, miniature, spec, target: ConversionTarget, monkeypatch
):
    interrupt_after(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        convert(Conversion(spec, miniature.root), target)
    monkeypatch.undo()
    shutil.rmtree(miniature.root / "training" / "patient001")
    convert(Conversion(spec, miniature.root), target)
    assert not [name for name in tree(target.raw) if "patient001" in name]


def test_workers_change_nothing(tree, miniature, spec, target: ConversionTarget, tmp_path: Path):
    other = ConversionTarget.of(tmp_path / "other", tmp_path / "other_preprocessed", 27, "ACDC")
    convert(Conversion(spec, miniature.root, workers=1), target)
    convert(Conversion(spec, miniature.root, workers=2), other)
    assert tree(target.raw) == tree(other.raw)


def test_n4_is_for_images_only(miniature, spec, target: ConversionTarget, monkeypatch):
    monkeypatch.setattr(tasks, "correct_bias_field", lambda image: image + 1)
    convert(Conversion(spec, miniature.root, n4=True), target)
    home = miniature.root / "training" / "patient002"
    before = sitk.ReadImage(str(home / f"{CASE}.nii.gz"))
    after = sitk.ReadImage(str(target.raw / "imagesTr" / f"{CASE}_0000.nii.gz"))
    np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (before + 1, after)))
    label = target.raw / "labelsTr" / f"{CASE}.nii.gz"
    assert label.read_bytes() == (home / f"{CASE}_gt.nii.gz").read_bytes()
    assert json.loads((target.raw / "conversion.json").read_text())["decisions"]["n4"] is True


@pytest.mark.parametrize("number", [0, 1000])
def test_dataset_id_out_of_range(tmp_path: Path, number: int):
    with pytest.raises(ValueError, match="allowed: 1 to 999"):
        ConversionTarget.of(tmp_path, tmp_path, number, "ACDC")


def test_dataset_id_of_another_dataset(tmp_path: Path):
    (tmp_path / "Dataset027_Other").mkdir()
    with pytest.raises(ValueError, match=r"taken by.*Dataset027_Other"):
        ConversionTarget.of(tmp_path, tmp_path, 27, "ACDC")


def test_real_patients(
    shared_data: Path, spec: DatasetSpec, target: ConversionTarget, tmp_path: Path
):
    training = shared_data / "ACDC" / "training"
    source = tmp_path / "training"
    source.mkdir()
    for number in (1, 2, 90):
        (source / f"patient{number:03d}").symlink_to(training / f"patient{number:03d}")
    checked = convert(Conversion(spec, source), target)
    names = [each.case.identifier for each in checked]
    assert len(names) == 6
    assert "patient090_frame04" in names
    assert {each.orientation for each in checked} == {"LPS"}
    assert all(set(each.values) == {0, 1, 2, 3} for each in checked)
    assert all(len(each.size) == 3 and 5 <= each.spacing[2] <= 10 for each in checked)
