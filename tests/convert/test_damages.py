"""The laws of damage: every dataset spec names what is broken, and writes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from layouts import LAYOUTS

from nnssl.convert.engine import check_source
from nnssl.convert.planning import Conversion, PlannedCase, plan_cases
from nnssl.convert.sources import ConversionError
from nnssl.convert.spec import DatasetSpec, find_specs, read_spec

LABELLED = [name for name in LAYOUTS if read_spec(find_specs()[name]).label]
HEADERS = [n for n in LABELLED if n not in ("STACOM_LV", "CHAOS_CT", "CHAOS_MR", "CHAOS_T1")]
REPAIRED = ("LiTS17", "LUNA16_lungs")


@pytest.fixture
def ready(tmp_path: Path) -> Callable[[str], tuple[DatasetSpec, PlannedCase]]:
    """``ready(name)``: the spec on its miniature, and one training case of it."""

    def make(name: str) -> tuple[DatasetSpec, PlannedCase]:
        LAYOUTS[name].make(tmp_path)
        spec = read_spec(find_specs()[name]).derive_from(tmp_path)
        cases, problems = plan_cases(Conversion(spec, tmp_path))
        assert problems == []
        return spec, [case for case in cases if case.part == "Tr"][-1]

    return make


def report(spec: DatasetSpec, source: Path) -> str:
    with pytest.raises(ConversionError) as caught:
        check_source(Conversion(spec, source))
    return str(caught.value)


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], shift: float = 0.0) -> None:
    """Change the values or the origin of a file, in its own format."""
    if path.suffix == ".mgz":
        old = nibabel.load(path)
        affine = old.affine.copy()
        affine[0, 3] += shift
        nibabel.save(nibabel.MGHImage(change(np.asarray(old.dataobj)), affine), path)
        return
    old = sitk.ReadImage(str(path))
    new = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(old)), isVector=False)
    new.SetSpacing(old.GetSpacing())
    new.SetDirection(old.GetDirection())
    new.SetOrigin((old.GetOrigin()[0] + shift, *old.GetOrigin()[1:]))
    sitk.WriteImage(new, str(path))


def truncate(path: Path) -> None:
    path = path.with_suffix(".raw") if path.suffix == ".mhd" else path
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", [name for name in LABELLED if name != "STACOM_LV"])
def test_a_missing_label(name: str, ready, tmp_path: Path):
    spec, case = ready(name)
    for path in case.label:
        (tmp_path / path).unlink()
    assert f"{case.identifier}: label is missing" in report(spec, tmp_path)
    if name == "Decathlon":
        with pytest.raises(ValueError, match=r"lists 1 files that are missing(.|\n)*Get Decathlon"):
            read_spec(find_specs()[name]).derive_from(tmp_path)


def test_a_missing_picture(ready, tmp_path: Path):
    """A patient without masks is a test patient; one slice without a mask is an error."""
    spec, case = ready("STACOM_LV")
    (tmp_path / case.label[0]).unlink()
    slice_file = Path(case.label[0]).with_suffix(".dcm").name
    assert f"has 2 pictures for 3 slices; none for ['{slice_file}']" in report(spec, tmp_path)


@pytest.mark.parametrize("name", [*LABELLED, "LUNA16"])
def test_a_missing_image(name: str, ready, tmp_path: Path):
    spec, case = ready(name)
    for path in case.images[0]:
        victim = tmp_path / path
        (victim.with_suffix(".raw") if name == "LUNA16" else victim).unlink()
    found = report(spec, tmp_path)
    if name == "LUNA16":
        assert f"{case.images[0][0]} cannot be read" in found
    elif name == "CHAOS_MR":  # the label serves other sequences too
        assert "T2SPIR_5: image of channel MRI is missing" in found
    else:
        assert f"image of channel {next(iter(spec.channels))} is missing" in found


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_truncated_image(name: str, ready, tmp_path: Path):
    spec, case = ready(name)
    truncate(tmp_path / case.images[0][0])
    found = report(spec, tmp_path)
    assert f"  - {case.identifier}: " in found
    assert "is truncated" in found or "cannot be read" in found
    assert all(case.images[0][0].split("/")[0] in line for line in found.splitlines()[1:])


@pytest.mark.parametrize("name", LABELLED)
def test_an_unknown_label(name: str, ready, tmp_path: Path):
    spec, case = ready(name)
    path = tmp_path / case.label[0]
    value = 77 if path.suffix == ".png" else 9999
    rewrite(path, lambda array: np.where(array == array.max(), value, array).astype(array.dtype))
    found = report(spec, tmp_path)
    assert f"{case.identifier}: label has the values [{value}" in found
    assert "; allowed: " in found


@pytest.mark.parametrize("name", LABELLED)
def test_a_label_of_another_size(name: str, ready, tmp_path: Path):
    spec, case = ready(name)
    rewrite(tmp_path / case.label[0], lambda array: array[..., :-1])
    found = report(spec, tmp_path)
    assert f"{case.identifier}: " in found
    assert "size" in found


def test_a_channel_of_another_size_is_not_blamed_on_the_label(ready, tmp_path: Path):
    spec, case = ready("BraTS2018")
    rewrite(tmp_path / case.images[2][0], lambda array: array[..., :-1])
    found = report(spec, tmp_path)
    assert "of the channel T2" in found
    assert "label" not in found


@pytest.mark.parametrize("name", HEADERS)
def test_a_label_of_another_place(name: str, ready, tmp_path: Path):
    spec, case = ready(name)
    rewrite(tmp_path / case.label[0], lambda array: array, shift=10.0)
    if name in REPAIRED:
        notes = {e.case.identifier: e.notes for e in check_source(Conversion(spec, tmp_path))}[
            case.identifier
        ]
        assert "took the geometry" in str(notes)
    else:
        assert f"{case.identifier}: origin" in report(spec, tmp_path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_case_that_is_there_twice(name: str, ready, tmp_path: Path):
    spec, case = ready(name)
    for path in case.images[0]:
        copy = tmp_path / "again" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((tmp_path / path).read_bytes())
    found = report(spec, tmp_path)
    assert "is there twice, the other is" in found
    assert case.images[0][0].rpartition("/")[0] in found


@pytest.mark.parametrize("name", [*LAYOUTS, "ACDC"])
def test_an_empty_or_missing_source_says_where_to_get_the_data(name: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    spec = read_spec(find_specs()[name])
    for folder in ("empty", "missing"):
        with pytest.raises(ValueError, match=r"The folder must look like this") as caught:
            check_source(Conversion(spec.derive_from(tmp_path / folder), tmp_path / folder))
        assert spec.where in str(caught.value)
        assert spec.layout in str(caught.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_unreadable_folder(name: str, ready, tmp_path: Path, monkeypatch):
    """Root may read everything, so the refusal of the system is imitated."""
    spec, _ = ready(name)
    closed = tmp_path / "closed"
    closed.mkdir()
    real = os.scandir

    def scandir(path):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert f"{closed}: folder cannot be read (Permission denied)" in report(spec, tmp_path)


def test_a_patient_folder_without_images(ready, tmp_path: Path):
    spec, _ = ready("HCP")
    (tmp_path / "999999").mkdir()
    assert "999999: folder holds no image" in report(spec, tmp_path)
