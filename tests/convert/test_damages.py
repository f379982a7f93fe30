"""The laws of damage: every dataset spec names what is broken, and writes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from damaged import Damaged, make_damaged
from judging import ACCEPTED, REFUSED, convert_image, judge
from layouts import LAYOUTS
from native import SHAPE, UPRIGHT, intensities, write

from nnssl.convert.engine import ConversionTarget, check_source, convert
from nnssl.convert.planning import Conversion, PlannedCase, plan_cases
from nnssl.convert.private import make_private_spec
from nnssl.convert.sources import ConversionError
from nnssl.convert.spec import DatasetSpec, find_specs, read_spec

LABELLED = [name for name in LAYOUTS if read_spec(find_specs()[name]).label]
HEADERS = [n for n in LABELLED if n not in ("STACOM_LV", "CHAOS_CT", "CHAOS_MR", "CHAOS_T1")]


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


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> list[Damaged]:
    return make_damaged(tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize(
    "step", [pytest.param(12, id="a sample"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
def test_damaged_images_are_refused_clearly_or_read_rightly(damaged, step: int, tmp_path: Path):
    assert len(damaged) > 480
    found = {each.name: judge(each, convert_image, tmp_path / "work") for each in damaged[::step]}
    wrong = {name: what for name, what in found.items() if what not in (REFUSED, ACCEPTED)}
    assert wrong == {}
    assert set(found.values()) == {REFUSED, ACCEPTED}


def labelled(folder: Path, orientation: str, **header) -> Path:
    """Two cases; the labels are stored in another orientation than their images."""
    for case in ("a", "b"):
        write(folder / case / "image.nii.gz", intensities(1), UPRIGHT)
        label = write(
            folder / case / "label.nii.gz", (intensities(1) > 0).astype(np.uint8), UPRIGHT
        )
        image = sitk.Cast(sitk.DICOMOrient(sitk.ReadImage(str(label)), orientation), sitk.sitkUInt8)
        for name, value in header.items():
            getattr(image, f"Set{name}")(value)
        sitk.WriteImage(image, str(label))
    return folder


NO_HEADER = {"Origin": (0, 0, 0), "Spacing": (1, 1, 1), "Direction": UPRIGHT}
REPAIRS = {
    "turned": ("RAI", {}, "label was turned to its image"),
    "another box": ("LPS", {"Origin": (0.0, 4.5, 11.0)}, None),
    "no header": ("LPS", NO_HEADER, "label took the geometry of its image"),
    "no origin": ("LPS", {"Origin": (0, 0, 0)}, "label took the geometry of its image"),
    "turned and moved": ("RAI", {"Origin": (1, 2, 3)}, None),
}


@pytest.mark.parametrize("name", REPAIRS)
def test_repaired_labels_lie_where_they_were_drawn(name: str, tmp_path: Path):
    """A label on other axes is turned, one without header takes the image's, others are refused."""
    orientation, header, note = REPAIRS[name]
    source = labelled(tmp_path / "source", orientation, **header)
    template = ["X", ["CT={case}/image.nii.gz"], "{case}/label.nii.gz", ["box"]]
    spec = make_private_spec(*template, headers="repair")
    advice = "(--headers repair would mend this)"
    assert (advice in report(make_private_spec(*template), source)) == bool(note)
    if note is None:
        assert "a: origin" in report(spec, source)
        return
    target = ConversionTarget.of(tmp_path / "raw", tmp_path / "pre", 7, "X")
    checked = convert(Conversion(spec, source), target)
    assert all(note in str(each.notes) for each in checked)
    record = json.loads((target.raw / "conversion.json").read_text())["files"]
    assert note in str(record["labelsTr/a.nii.gz"]["notes"])
    label = sitk.ReadImage(str(target.raw / "labelsTr" / "a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), intensities(1) > 0)
    assert label.GetOrigin() == pytest.approx((-3.0, 4.5, 10.0))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_values_that_are_not_finite_are_counted_or_replaced(ending: str, tmp_path: Path):
    array = intensities(1).astype(np.float32)
    for case in ("a", "b"):
        write(tmp_path / "source" / case / f"image{ending}", array)
    array[1, 2, 3:5] = np.nan, np.inf
    write(tmp_path / "source" / "a" / f"image{ending}", array)
    spec = make_private_spec("X", [f"CT={{case}}/image{ending}"])
    what = f"holds values that are not finite (2 of {array.size}); --nan 0 makes them 0"
    assert f"a: a/image{ending} {what}" in report(spec, tmp_path / "source")
    target = ConversionTarget.of(tmp_path / "raw", tmp_path / "pre", 7, "X")
    convert(Conversion(replace(spec, nan=-5.0), tmp_path / "source"), target)
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(target.raw / "imagesTr" / "a_0000.nii.gz")))
    array[1, 2, 3:5] = -5
    np.testing.assert_array_equal(read, array)
    record = json.loads((target.raw / "conversion.json").read_text())
    notes = record["files"]["imagesTr/a_0000.nii.gz"]["notes"]
    assert notes == [f"values that are not finite became -5 (2 of {array.size})"]
    assert record["decisions"]["spec"]["nan"] == -5


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_colours_become_one_channel_each(ending: str, tmp_path: Path):
    colours = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3)).astype(np.uint8)
    for case in ("a", "b"):
        (tmp_path / "source" / case).mkdir(parents=True)
        image = sitk.GetImageFromArray(colours, isVector=True)
        sitk.WriteImage(image, str(tmp_path / "source" / case / f"image{ending}"))
    spec = make_private_spec("X", [f"R,G,B={{case}}/image{ending}"])
    target = ConversionTarget.of(tmp_path / "raw", tmp_path / "pre", 7, "X")
    convert(Conversion(spec, tmp_path / "source"), target)
    for channel in range(3):
        path = target.raw / "imagesTr" / f"a_000{channel}.nii.gz"
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        np.testing.assert_array_equal(written, colours[..., channel])
