"""DICOM trees as hospitals export them: chosen series, SEG and RTSTRUCT as labels, no names."""

from __future__ import annotations

import json
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

pytest.importorskip("highdicom")
import hospital as h
from native import intensities

from nnssl.cli import convert as command
from nnssl.common.files import hash_json
from nnssl.convert.dicom_spec import make_dicom_spec
from nnssl.convert.dicom_tree import read_tree
from nnssl.convert.engine import ConversionTarget, check_source, convert
from nnssl.convert.planning import Conversion, plan_cases
from nnssl.convert.records import hash_job
from nnssl.convert.sources import ConversionError
from nnssl.convert.spec import find_specs, read_spec

SHAPE = (6, 10, 8)  # z, y, x
LABELS = ["tumour=gtv.*", "lungs=lung.*"]
# in headers and paths; too long to be in a hash by chance
SECRETS = (b"Doe", b"Roe", b"House", b"J 123", b"19701231", b"20180410", b"1.2.826.0.1")


def tumour() -> np.ndarray:
    """A box with a hole, on three slices in the middle."""
    mask = np.zeros(SHAPE, bool)
    mask[2:5, 2:8, 1:6] = True
    mask[3, 4:6, 3] = False
    return mask


def lungs() -> np.ndarray:
    """A bar and a single voxel, on other slices than the tumour too."""
    mask = np.zeros(SHAPE, bool)
    mask[1, 1:3, 1:6] = mask[5, 7, 7] = mask[2, 9, 2:7] = True
    return mask


MASKS = {"GTV-1": tumour(), "Lung_L": lungs(), "BODY": np.ones(SHAPE, bool)}


@pytest.fixture
def roots(tmp_path: Path, monkeypatch) -> Path:
    for each in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(each, str(tmp_path / each))
    read_tree.cache_clear()
    return tmp_path


def two_patients(root: Path, draw=h.segmentation) -> Path:
    """Two patients with a drawn transversal series, among other things; paths hold names."""
    for number, patient in enumerate(("Doe^J 123", "Roe^R 456")):
        home = root / f"{patient}_19701231" / "20180410"
        of = {"patient": patient, "study": f"1.{number}"}
        slices = h.series(home / "3", intensities(number, SHAPE), **of)
        h.series(home / "4", intensities(9, SHAPE), axes=h.CORONAL, **of)
        h.series(home / "5", intensities(8, SHAPE), "t2_tse_tra", **of)
        draw(home / "drawn", slices, MASKS)
        pixels = {"Rows": 1, "Columns": 1, "BitsAllocated": 16, "PixelRepresentation": 0}
        report = h.new_object(h.CAPTURE, patient, PixelData=b"\0\0", **pixels)
        h.save(report, home / "report.dcm")
        (home / "readme.txt").write_text("no DICOM")
    return root


def spec_of(root: Path, series=("T1=t1.*transv",), labels=LABELS, label=None, **entries):
    read_tree.cache_clear()
    return make_dicom_spec(read_tree(root, 1), "H", series, label, labels, **entries)


def problems_of(root: Path, **options) -> str:
    with pytest.raises(ConversionError) as error:
        check_source(Conversion(spec_of(root, **options), root))
    return str(error.value)


def world(path: Path) -> dict[tuple[float, ...], float]:
    """Place (mm) -> value, of all voxels that are not 0."""
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    points = (image.TransformIndexToPhysicalPoint(i[::-1]) for i in np.argwhere(array).tolist())
    return {
        tuple(np.round(p, 2)): v for p, v in zip(points, array[array != 0].tolist(), strict=True)
    }


def expected(array: np.ndarray, axes=h.OBLIQUE) -> dict[tuple[float, ...], float]:
    """The same from the positions that were written."""
    found = {}
    for z, y, x in np.argwhere(array).tolist():
        point = np.array(h.place(z, axes)) + x * h.SPACING[0] * axes[0] + y * h.SPACING[1] * axes[1]
        found[tuple(np.round(point, 2))] = float(array[z, y, x])
    return found


def convert_line(root: Path, *more: str) -> None:
    line = f"dicom {root} -d 60 --name H --workers 1 --series T1=t1.*transv --labels"
    command.main([*line.split(), *LABELS, *more])


def labelmap(path: Path, slices, masks) -> None:
    masks = {name: mask for name, mask in masks.items() if name != "BODY"}
    h.segmentation(path, slices, masks, "LABELMAP")


@pytest.mark.parametrize("draw", [h.segmentation, labelmap, h.structure_set])
def test_images_and_labels_come_back_voxel_by_voxel_where_they_lie(roots, draw, capsys):
    convert_line(two_patients(roots / "pacs", draw))
    raw = roots / "nnUNet_raw" / "Dataset060_H"
    truth = tumour() + 2 * lungs()
    images = sorted((raw / "imagesTr").iterdir())
    assert len(images) == 2
    both = [world(path) for path in images]
    for number in (0, 1):
        array = expected(intensities(number, SHAPE))
        label = raw / "labelsTr" / images[[array == each for each in both].index(True)].name
        assert world(label.with_name(label.name.replace("_0000", ""))) == expected(truth)
    reader = sitk.ImageSeriesReader()  # a second opinion on the grid
    home = next((roots / "pacs").glob("Doe*")) / "20180410" / "3"
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(home)))
    other, ours = reader.Execute(), sitk.ReadImage(str(images[0]))
    for each in ("Origin", "Spacing", "Direction"):
        values = [getattr(image, f"Get{each}")() for image in (other, ours)]
        np.testing.assert_allclose(*values, atol=1e-3)
    said = capsys.readouterr().out
    assert "2 files passed over: Secondary Capture Image Storage" in said
    assert "2 files passed over: no DICOM" in said
    assert "4 series passed over: not chosen" in said
    dataset = json.loads((raw / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "tumour": 1, "lungs": 2}


def test_no_name_number_or_date_of_a_patient_is_written(roots, tree):
    root = two_patients(roots / "pacs")
    convert_line(root)
    raw = roots / "nnUNet_raw" / "Dataset060_H"
    for name, content in tree(roots / "nnUNet_raw").items():
        for secret in SECRETS:
            assert secret not in name.encode()
            assert name.endswith(".gz") or secret not in content
    first = {path.name for path in (raw / "imagesTr").iterdir()}
    key = roots / "nnUNet_raw" / ".nnssl_patient_key"
    assert key.stat().st_mode & 0o777 == 0o600
    shutil.rmtree(raw)
    shutil.rmtree(roots / "nnUNet_preprocessed")
    convert_line(root)
    assert {path.name for path in (raw / "imagesTr").iterdir()} == first  # the same key
    shutil.rmtree(raw)
    shutil.rmtree(roots / "nnUNet_preprocessed")
    key.unlink()
    convert_line(root)
    assert first.isdisjoint(path.name for path in (raw / "imagesTr").iterdir())
    key.write_text("")
    with pytest.raises(SystemExit, match="nnssl_patient_key is damaged"):
        convert_line(root)
    shutil.rmtree(raw)
    shutil.rmtree(roots / "nnUNet_preprocessed")
    convert_line(root, "--keep-ids")
    cases = json.loads((raw / "cases.json").read_text())
    assert {each["patient"] for each in cases["cases"].values()} == {"Doe-J-123", "Roe-R-456"}


def test_series_are_chosen_by_modality_description_and_orientation(roots):
    root = two_patients(roots / "pacs")

    def count(*series: str) -> int:
        return len(plan_cases(Conversion(spec_of(root, series, []), root))[0])

    assert count("T1=T1.*tra") == 4  # by the description
    assert count("T1=T1.*transversal") == 2
    assert count("^mr.*coronal") == 2
    spec = spec_of(root, ["T1=t1.*transv", "T2=t2"], LABELS)
    cases, problems = plan_cases(Conversion(spec, root))
    assert not problems
    assert [len(case.images) for case in cases] == [2, 2]
    assert list(spec.channels) == ["T1", "T2"]
    assert list(spec_of(root, ["t2"], []).channels) == ["MR"]
    with pytest.raises(ConversionError, match="2 series of one study match channel T1: 'MR t1_"):
        check_source(Conversion(spec_of(root, ["T1=t1", "T2=t2"], []), root))
    for series, message in (
        ([], r"--series is missing.*\n +2  MR t1_tse_tra coronal\n +2  MR t1_tse_tra transversal"),
        (["FLAIR=flair"], "which no series matches; there are"),
        (["T1=("], "no regular expression"),
        (["T1=t1", "T1=t2"], "a name of its own"),
    ):
        with pytest.raises(ValueError, match=message):
            spec_of(root, series)
    with pytest.raises(ValueError, match=r"--labels is missing.*\n +2  BODY\n +2  GTV-1"):
        spec_of(root, labels=[], label="SEG")


def test_a_header_is_read_once_and_a_file_that_is_broken_is_named(roots, monkeypatch):
    root = two_patients(roots / "pacs")
    reads = []
    read = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **o: reads.append(a[0]) or read(*a, **o))
    cases, _ = plan_cases(Conversion(spec_of(root), root))
    assert len(cases) == 2
    assert len(reads) == len(set(reads)) == 2 * (3 * SHAPE[0] + 2)
    seg = next(root.rglob("drawn"))
    seg.write_bytes(seg.read_bytes()[:700])
    assert "20180410/drawn: " in problems_of(root)
    seg.unlink()
    cut = next(root.rglob("3/IM0001"))
    whole = cut.read_bytes()
    for length in (0, 300, 600, len(whole) - 170):  # empty; no header, half of it, no pixels
        cut.write_bytes(whole[:length])
        assert "3/IM0001: " in problems_of(root)


def test_copies_are_passed_over_and_what_differs_or_is_no_slice_is_refused(roots):
    root = two_patients(roots / "pacs")
    original = next(root.glob("Doe*/20180410/3")) / "IM0002"
    copy = original.with_name("copy")
    shutil.copyfile(original, copy)
    conversion = Conversion(spec_of(root), root)
    assert len(check_source(conversion)) == 2
    remark = "1 files passed over: copies of slices that are there already"
    assert remark in conversion.find_series().remarks
    other = pydicom.dcmread(original)
    other.PixelData = bytes(len(other.PixelData))
    other.save_as(copy)
    assert "say that they are the same slice, but they differ" in problems_of(root)
    del other.ImagePositionPatient
    other.save_as(copy)
    assert "copy: is among the files of a chosen series and is no slice" in problems_of(root)


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_labels_of_another_place_are_refused(roots, kind):
    root, path = roots / "pacs", roots / "pacs" / "drawn"
    slices = h.series(root / "a", intensities(0, SHAPE), patient="1", study="1.1")
    h.segmentation(root / "seg", h.series(root / "b", intensities(1, SHAPE)), MASKS)

    def draw(**changes) -> str:
        changed = deepcopy(slices)
        for number, each in enumerate(changed):
            for name, change in changes.items():
                setattr(each, name, change(number, getattr(each, name)))
        if kind == "seg":
            h.segmentation(path, changed, MASKS)
        else:
            ds = h.structure_set(path, changed, MASKS)
            if "ImagePositionPatient" in changes:
                contour = ds.ROIContourSequence[0].ContourSequence[0]
                points = np.reshape(contour.ContourData, (-1, 3)).astype(float)
                shift = 0.3 * h.DISTANCE * np.cross(*h.OBLIQUE)
                contour.ContourData = [f"{v:.4f}" for v in (points + shift).ravel()]
                h.save(ds, path)
        return problems_of(root)

    frame = draw(FrameOfReferenceUID=lambda number, old: "1.2.9")
    assert "drawn has another frame of reference (1.2.9) than its series" in frame
    moved = draw(ImagePositionPatient=lambda number, old: [old[0] + 0.2, old[1], old[2] + 1.0])
    assert ("off the series' grid" if kind == "seg" else "between the slices") in moved
    if kind == "seg":
        finer = draw(PixelSpacing=lambda number, old: [1.4, 1.25])
        assert "has pixels of (1.25, 1.4) mm, its series of (1.25, 1.5) mm" in finer
        turned = draw(ImageOrientationPatient=lambda number, old: h.CORONAL.ravel().tolist())
        assert "has other axes" in turned
    else:
        ds = h.structure_set(path, slices, MASKS)
        ds.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "POINT"
        h.save(ds, path)
        assert "outlines 'GTV-1' by POINT; allowed: CLOSED_PLANAR" in problems_of(root)


def test_a_segment_may_be_drawn_on_a_part_of_the_slices_only(roots):
    root = roots / "pacs"
    for patient in "12":
        array, of = intensities(int(patient), SHAPE), {"patient": patient, "study": patient}
        slices = h.series(root / patient, array, **of)
        part = deepcopy(slices[2:5])
        for each in part:
            each.Rows, each.Columns = 6, 5
            corner = np.array(each.ImagePositionPatient, float)
            corner += h.SPACING[0] * h.OBLIQUE[0] + 2 * h.SPACING[1] * h.OBLIQUE[1]
            each.ImagePositionPatient = [round(v, 4) for v in corner]
        h.segmentation(root / f"{patient}.dcm", part, {"GTV": tumour()[2:5, 2:8, 1:6]})
    target = ConversionTarget.of(roots / "nnUNet_raw", roots / "nnUNet_preprocessed", 60, "H")
    convert(Conversion(spec_of(root, labels=["tumour=GTV"]), root), target)
    for path in (target.raw / "labelsTr").iterdir():
        assert world(path) == expected(tumour() * 1)


def test_structures_go_by_name_and_may_share_voxels_on_request_only(roots):
    root = roots / "pacs"
    for patient in "12":
        array, of = intensities(int(patient), SHAPE), {"patient": patient, "study": patient}
        slices = h.series(root / patient, array, **of)
        masks = {"GTV": tumour(), "Body": tumour() | lungs()}
        h.structure_set(root / f"rt{patient}", slices, masks)
    said = problems_of(root, labels=["body=BODY", "tumour=GTV"])
    count = int(tumour().sum())
    assert f"has {count} voxels in 'GTV' and in 'Body'; --overlap last" in said
    target = ConversionTarget.of(roots / "nnUNet_raw", roots / "nnUNet_preprocessed", 60, "H")
    spec = spec_of(root, labels=["body", "tumour=GTV", "liver"], overlap="last")
    checked = convert(Conversion(spec, root), target)
    assert {note for each in checked for notes in each.notes.values() for note in notes} == {
        "no structure is named liver"
    }
    for path in (target.raw / "labelsTr").iterdir():
        assert world(path) == expected(np.maximum(2 * tumour(), (tumour() | lungs()) * 1))
    assert "has none of ['liver']; its structures are ['Body', 'GTV']" in problems_of(
        root, labels=["liver"]
    )
    assert "'GTV', which fits the labels [1, 2]" in problems_of(root, labels=["a=g.*", "b=.tv"])
    h.structure_set(root / "second", slices, {"GTV": tumour()})
    said = problems_of(root, labels=["tumour=GTV"])
    assert "outlines ['GTV'], as another object does; choose one with --label" in said
    union = spec_of(root, labels=["any=GTV", "any=body"], label="RTSTRUCT")
    assert union.labels == {"background": 0, "any": 1}


def test_a_study_without_any_label_is_named(roots):
    root = two_patients(roots / "pacs")
    next(root.rglob("drawn")).unlink()
    assert "label is missing" in problems_of(root)
    fractional = deepcopy(pydicom.dcmread(next(root.rglob("drawn"))))
    fractional.SegmentationType = "FRACTIONAL"
    fractional.save_as(next(root.rglob("drawn")))
    assert "BINARY or LABELMAP" in problems_of(root)


def test_multi_frame_images_are_read_frame_by_frame(roots):
    root = roots / "pacs"
    for patient in "12":
        array = intensities(int(patient), SHAPE)
        slices = h.series(roots / "single" / patient, array, patient=patient, study=patient)
        ds = h.multi_frame(root / f"{patient}.dcm", slices, StudyInstanceUID=patient)
        h.segmentation(root / f"seg{patient}.dcm", [ds], reorder(MASKS, ds, slices))
    target = ConversionTarget.of(roots / "nnUNet_raw", roots / "nnUNet_preprocessed", 60, "H")
    convert(Conversion(spec_of(root), root, key=None), target)
    for patient in "12":
        (image,) = (target.raw / "imagesTr").glob(f"{patient}_*")
        array = intensities(int(patient), SHAPE).astype(int)
        assert world(image) == expected(2 * array + 10 * np.arange(SHAPE[0])[:, None, None])
        (label,) = (target.raw / "labelsTr").glob(f"{patient}_*")
        assert world(label) == expected(tumour() + 2 * lungs())


def test_a_frame_without_a_place_is_named(roots):
    root = roots / "pacs"
    for patient in "12":
        slices = h.series(roots / "single" / patient, intensities(1, SHAPE), study=patient)
        ds = h.multi_frame(root / patient, slices, StudyInstanceUID=patient, PatientID=patient)
    del ds.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    h.save(ds, root / "2")
    assert "2: cannot be read (AttributeError: frame without PlanePosition)" in problems_of(
        root, labels=[]
    )


def test_a_label_moves_with_its_tilted_series(roots):
    root = roots / "pacs"
    for patient in "12":
        of = {"patient": "", "study": patient}
        slices = h.series(root / patient, 1000 * tumour(), **of)
        for k, each in enumerate(slices):  # a pixel sideways per slice, so that nothing is blended
            shifted = np.array(h.place(k)) + k * h.SPACING[1] * h.OBLIQUE[1]
            each.ImagePositionPatient = [round(v, 4) for v in shifted]
            h.save(each, root / patient / f"IM{SHAPE[0] - k:04d}")
        h.segmentation(root / f"seg{patient}", slices, {"GTV": tumour()})
    assert "has a gantry tilt of 26.6 degrees" in problems_of(root, labels=["tumour=GTV"])
    target = ConversionTarget.of(roots / "nnUNet_raw", roots / "nnUNet_preprocessed", 60, "H")
    conversion = Conversion(spec_of(root, labels=["tumour=GTV"], slices="resample"), root)
    convert(conversion, target)
    for path in (target.raw / "imagesTr").iterdir():
        label = world(target.raw / "labelsTr" / path.name.replace("_0000", ""))
        assert label == {place: value / 1000 for place, value in world(path).items()}
        assert len(label) == tumour().sum()
    remark = "2 studies have no PatientID; each counts as a patient"
    assert remark in conversion.find_series().remarks


def reorder(masks, ds, slices):
    """Masks in the order of the frames."""
    places = [tuple(each.ImagePositionPatient) for each in slices]
    order = [
        places.index(tuple(frame.PlanePositionSequence[0].ImagePositionPatient))
        for frame in ds.PerFrameFunctionalGroupsSequence
    ]
    return {name: mask[order] for name, mask in masks.items()}


def test_a_missing_package_is_named(roots, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(SystemExit, match=r"pydicom is missing.*pip install 'nnssl\[dicom\]'"):
        convert_line(two_patients(roots / "pacs"))


def test_older_conversions_keep_their_hash(miniature):
    conversion = Conversion(read_spec(find_specs()["ACDC"]), miniature.root)
    checked = check_source(conversion)
    known = (
        "name modality channels case patient label labels regions_class_order remap test folder "
    )
    known += "frames fourth_axis headers slices foreground derive folds seed"
    spec = {name: getattr(conversion.spec, name) for name in known.split()} | {"remap": {}}
    files = {name: value for each in checked for name, value in each.hashes.items()}
    assert hash_job(conversion, checked) == hash_json({"spec": spec, "n4": False, "files": files})
