"""Several volumes in one DICOM series: told apart by what headers say, or refused; never mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("highdicom")
import hospital as h
from native import intensities
from pydicom.uid import generate_uid

from nnssl.convert.dicom_spec import make_dicom_spec
from nnssl.convert.dicom_tree import read_tree
from nnssl.convert.dicom_volumes import EXACT, Marks, part_volumes
from nnssl.convert.engine import ConversionTarget, check_source, convert
from nnssl.convert.planning import Conversion
from nnssl.convert.sources import ConversionError
from tests.convert.test_dicom_tree import MASKS, expected, roots, world

__all__ = ["roots"]
SHAPE = (4, 10, 8)
HALF = {name: mask[1:5] for name, mask in MASKS.items() if name != "BODY"}
CLOCK = {"AcquisitionDate": "20180410"}


def write(root: Path, *volumes: dict[str, Any], patient: str = "1", **more: Any) -> list[Any]:
    """One series of several volumes, each with tags of its own; `list` values go by slice."""
    uid, frame = generate_uid(), generate_uid()
    written = []
    for number, tags in enumerate(volumes):
        fixed = {key: value for key, value in tags.items() if not isinstance(value, list)}
        folder = root / patient / f"v{number}"
        fixed |= {"SeriesInstanceUID": uid, "FrameOfReferenceUID": frame, **more}
        slices = h.series(
            folder, image(number), "dyn", patient=patient, study=f"1.{patient}", **fixed
        )
        for k, each in enumerate(slices):
            for key in tags.keys() - fixed.keys():
                setattr(each, key, tags[key][k])
            h.save(each, folder / f"IM{len(slices) - k:04d}")
        written.append(slices)
    return written


def image(number: int) -> np.ndarray:
    return intensities(number, SHAPE)


def convert_all(root: Path, *series: str, **options: Any) -> Path:
    read_tree.cache_clear()
    spec = make_dicom_spec(read_tree(root, 1), "H", series or ("MR=dyn",), **options)
    parent = root.parent
    target = ConversionTarget.of(parent / "nnUNet_raw", parent / "nnUNet_preprocessed", 60, "H")
    convert(Conversion(spec, root, key=None), target)
    return target.raw


def refusal(root: Path, **options: Any) -> str:
    read_tree.cache_clear()
    spec = make_dicom_spec(read_tree(root, 1), "H", ("MR=dyn",), **options)
    with pytest.raises(ConversionError) as error:
        check_source(Conversion(spec, root, key=None))
    return str(error.value)


@pytest.mark.parametrize(
    ("volumes", "names"),
    [
        ([{"TemporalPositionIdentifier": str(k)} for k in (1, 2, 3)], ["time1", "time2", "time3"]),
        ([{"DiffusionBValue": float(b)} for b in (0, 800)], ["b0", "b800"]),
        ([{"EchoNumbers": "1"}, {"EchoNumbers": "2"}], ["echo1", "echo2"]),
        ([{"EchoTime": "2.3"}, {"EchoTime": "4.6"}], ["te1", "te2"]),
        (
            [{"AcquisitionNumber": "7"}, {"AcquisitionNumber": "8"}],
            ["acquisition7", "acquisition8"],
        ),
        (
            [{"DiffusionBValue": b, "EchoNumbers": e} for b in (0.0, 50.0) for e in ("1", "2")],
            ["b0echo1", "b0echo2", "b50echo1", "b50echo2"],
        ),
        # phases of heartbeats that last unequally long
        (
            [{"TriggerTime": ["0", "3", "1", "2"]}, {"TriggerTime": ["40", "60", "55", "50"]}],
            ["phase1", "phase2"],
        ),
        (
            [{"AcquisitionTime": "115958", **CLOCK}, {"AcquisitionTime": "120001.5", **CLOCK}],
            ["time1", "time2"],
        ),
    ],
    ids=["time", "b", "echo", "te", "acquisition", "two marks", "phase", "clock"],
)
def test_each_volume_comes_back_whole_under_its_name(roots, volumes, names):
    for patient in "12":
        write(roots / "pacs", *volumes, patient=patient)
    raw = convert_all(roots / "pacs")
    for patient in "12":
        found = sorted((raw / "imagesTr").glob(f"{patient}_*"))
        assert len(found) == len(names)
        for file in found:
            name = file.name.removesuffix("_0000.nii.gz").split("_")[-1][6:]
            assert world(file) == expected(image(names.index(name)))


def test_volumes_are_chosen_by_name_and_become_channels(roots):
    for patient in "12":
        write(roots / "pacs", {"DiffusionBValue": 0.0}, {"DiffusionBValue": 800.0}, patient=patient)
    raw = convert_all(roots / "pacs", "low=dyn.* b0$", "high=dyn.*b800")
    files = sorted((raw / "imagesTr").glob("1_*"))
    assert [file.name[-11:] for file in files] == ["0000.nii.gz", "0001.nii.gz"]
    for number, file in enumerate(files):
        assert world(file) == expected(image(number))


def test_what_nothing_tells_apart_is_refused_with_what_was_found(roots):
    write(roots / "pacs", {}, {})
    text = refusal(roots / "pacs")
    assert "8 slices at 4 places, and nothing tells which belong to one volume" in text
    assert "dcm2niix" in text


def test_marks_that_contradict_each_other_and_lost_slices_are_refused(roots):
    root = roots / "pacs"
    write(
        root,
        {"EchoTime": ["1", "2", "1", "2"], "InversionTime": "5"},
        {"EchoTime": ["2", "1", "2", "1"], "InversionTime": "6"},
    )
    assert "EchoTime 1, 2; InversionTime 5, 6" in refusal(root)
    for volume in sorted(root.rglob("IM0002"))[1:]:
        volume.unlink()
    assert "7 slices at 4 places" in refusal(root)


def test_slices_of_one_volume_agree_in_what_a_volume_has_one_of(roots):
    write(roots / "pacs", {"DiffusionBValue": [0.0, 0.0, 800.0, 800.0]})
    assert "differ in DiffusionBValue (DiffusionBValue 0, 800)" in refusal(roots / "pacs")


def test_times_that_overlap_part_nothing():
    """The k-th slice in time at every place would mix two volumes."""

    def marks(times: list[float], place: int) -> list[Marks]:
        return [Marks((place,), (None,) * len(EXACT), None, ("", time)) for time in times]

    with pytest.raises(ValueError, match="nothing tells"):
        part_volumes([*marks([1, 5], 0), *marks([6, 9], 1)])
    parted = part_volumes([*marks([5, 1], 0), *marks([2, 6], 1)])
    assert parted == {"time1": [1, 2], "time2": [0, 3]}


def test_a_label_belongs_to_the_volume_that_it_was_drawn_on(roots):
    root = roots / "pacs"
    for patient in "12":
        times = ({"TemporalPositionIdentifier": "1"}, {"TemporalPositionIdentifier": "2"})
        _, second = write(root, *times, patient=patient)
        seg = h.segmentation(root / f"seg{patient}", second, HALF)
    raw = convert_all(root, labels=["tumour=gtv.*"])
    (label,) = (raw / "labelsTr").glob("1_*")
    assert label.name.endswith("time2.nii.gz")
    assert len(world(label)) == HALF["GTV-1"].sum()
    for reference in seg.ReferencedSeriesSequence:
        del reference.ReferencedInstanceSequence
    h.save(seg, root / "seg2")
    assert "refers to a series of 2 volumes, and not to the slices of one" in refusal(
        root, labels=["tumour=gtv.*"]
    )


def test_several_volumes_in_one_multi_frame_file_are_refused(roots):
    root = roots / "pacs"
    slices = h.series(roots / "single", image(0), "dyn")
    ds = h.multi_frame(root / "many.dcm", slices)
    first, second = ds.PerFrameFunctionalGroupsSequence[:2]
    second.PlanePositionSequence = first.PlanePositionSequence
    ds.SeriesDescription = "dyn"
    h.save(ds, root / "many.dcm")
    assert "many.dcm: is a multi-frame image of 4 frames at 3 places" in refusal(root)
