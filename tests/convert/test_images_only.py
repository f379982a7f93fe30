"""Images without labels: the foreground mask, private folders, and what nnU-Net makes of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from layouts import LAYOUTS
from native import dicom, intensities, photograph, values_in, write

from nnssl.convert.datalist import make_datalist_spec
from nnssl.convert.engine import ConversionTarget, check_source, convert
from nnssl.convert.labels import UnknownValuesError, look_up, make_foreground_mask
from nnssl.convert.planning import Conversion
from nnssl.convert.private import make_expression, make_private_spec
from nnssl.convert.spec import find_specs, read_spec
from nnssl.nnunet.splits import check_fold


def body(air: float, tissue: float, lung: float) -> tuple[np.ndarray, np.ndarray]:
    """A body with a closed hole (lung) and a smaller thing beside it (table)."""
    array = np.full((6, 24, 24), air)
    array[:, 4:18, 4:18] = tissue
    array[:, 8:12, 8:12] = lung
    truth = array > air
    array[:, 21:23, 2:20] = tissue
    truth[:, 8:12, 8:12] = True
    noise = np.random.default_rng(0).normal(0, abs(tissue - air) * 0.02, array.shape)
    return (array + noise).astype(np.float32), truth


@pytest.mark.parametrize(
    ("rule", "values"), [("hounsfield", (-1000, 40, -850)), ("otsu", (10, 800, 30))]
)
def test_the_mask_is_the_largest_thing_filled(rule: str, values: tuple[float, ...]):
    array, truth = body(*values)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1, 2, 3))
    mask = make_foreground_mask(image, rule)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask) > 0, truth)
    assert mask.GetSpacing() == (1, 2, 3)


def test_outliers_do_not_move_otsus_threshold():
    array, truth = body(10, 800, 30)
    array[0, 5, 5] = 1e7
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(make_foreground_mask(sitk.GetImageFromArray(array), "otsu")) > 0,
        truth,
    )


def test_images_without_foreground_are_refused():
    flat = sitk.GetImageFromArray(np.full((4, 4, 4), 7, np.int16))
    with pytest.raises(ValueError, match="is constant"):
        make_foreground_mask(flat, "otsu")
    flat[0, 0, 0] = -900
    with pytest.raises(ValueError, match="no value above -500"):
        make_foreground_mask(flat - 1000, "hounsfield")


@pytest.mark.parametrize(
    "name", ["ABIDE", "BraTS2018", "CHAOS_CT", "STACOM_LV", "LIDC", "Decathlon"]
)
def test_labels_can_be_left_unread(name: str, tmp_path: Path):
    LAYOUTS[name].make(tmp_path / "source")
    spec = read_spec(find_specs()[name]).derive_from(tmp_path / "source").without_labels()
    target = ConversionTarget.of(tmp_path / "raw", tmp_path / "pre", 50, spec.name)
    convert(Conversion(spec, tmp_path / "source"), target)
    dataset = json.loads((target.raw / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "foreground": 1}
    assert "regions_class_order" not in dataset
    files = json.loads((target.raw / "conversion.json").read_text())["files"]
    sources = json.dumps([each["source"] for each in files.values()])
    assert not [
        word for word in ("seg", "Ground", "nodules", ".png", "labelsTr") if word in sources
    ]


def test_lookup_is_exact_then_range_then_other():
    remap = {0: 0, 60: 3, "56-70": 1, "other": 2}
    np.testing.assert_array_equal(look_up(remap, np.array([[0, 60], [56, 999]])), [[0, 3], [1, 2]])
    with pytest.raises(UnknownValuesError, match=r"unknown values \[71.0\]"):
        look_up({0: 0, "56-70": 1}, np.array([0.0, 56, 71]))


def test_templates():
    import re

    found = re.fullmatch(make_expression("{patient}/**/{case}_*.nii.gz"), "p1/a/b/c2_x.nii.gz")
    assert found.groupdict() == {"patient": "p1", "case": "c2"}
    assert re.fullmatch(make_expression("{id}/{id}.nii"), "a/b.nii") is None


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".mgz", "/"])
def test_a_private_collection_in_any_format(ending: str, tmp_path: Path):
    from native import mgz

    for case in ("melanoma_01", "melanoma_02"):
        home = tmp_path / "source" / case
        if ending == "/":
            dicom(home / "vol", intensities(1))
        else:
            (mgz if ending == ".mgz" else write)(home / f"vol{ending}", intensities(1))
    spec = make_private_spec("USZ", [f"CT={{case}}/vol{ending}"])
    target = ConversionTarget.of(tmp_path / "raw", tmp_path / "pre", 50, spec.name)
    checked = convert(Conversion(spec, tmp_path / "source"), target)
    assert [each.case.identifier for each in checked] == ["melanoma_01", "melanoma_02"]
    image = sitk.ReadImage(str(target.raw / "imagesTr" / "melanoma_01_0000.nii.gz"))
    mask = sitk.ReadImage(str(target.raw / "labelsTr" / "melanoma_01.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), intensities(1))
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(mask) > 0, sitk.GetArrayFromImage(image) > -500
    )


def test_private_labels(tmp_path: Path):
    for case in ("a", "b"):
        write(tmp_path / case / "vol.nii.gz", intensities(1))
        write(tmp_path / case / "seg_mask.nii.gz", values_in((0, 1, 255)))
    images = ["T1={case}/vol.nii.gz"]
    spec = make_private_spec("USZ", images, "{case}/seg_mask.nii.gz", ["tumour=any"])
    assert {each.values for each in check_source(Conversion(spec, tmp_path))} == {(0, 1)}
    strict = make_private_spec("USZ", images, "{case}/seg_mask.nii.gz", ["tumour"])
    with pytest.raises(ValueError, match=r"values \[255\]; allowed: 0 background, 1 tumour"):
        check_source(Conversion(strict, tmp_path))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (["{case}.nii"], [], r"each is NAME=WHERE"),
        (["CT=x.nii"], [], r"needs CHANNEL=TEMPLATE with \{case\}"),
        (["CT={case}.nii"], [], "--labels is missing"),
        (["CT={case}.nii"], ["a=b"], "allowed: NAME, NAME=VALUE"),
    ],
)
def test_mistakes_in_templates_are_named(images, labels, message: str):
    with pytest.raises(ValueError, match=message):
        make_private_spec("X", images, "{case}_seg.nii", labels)


def test_cases_can_be_left_out(tmp_path: Path):
    for case in ("a", "b", "c"):
        write(tmp_path / f"{case}.nii.gz", intensities(1))
    (tmp_path / "c.nii.gz").write_bytes(b"broken")
    spec = make_private_spec("X", ["CT={case}.nii.gz"])
    assert len(check_source(Conversion(spec, tmp_path, leave_out=["c"]))) == 2
    with pytest.raises(ValueError, match=r"no case or patient \['d'\] to leave out"):
        check_source(Conversion(spec, tmp_path, leave_out=["d"]))


def test_one_patient_makes_no_folds(tmp_path: Path):
    """Fold ``all`` needs none, and nnU-Net would part the patient's cases."""
    for frame in (1, 2):
        write(tmp_path / "source" / f"a_{frame}.nii.gz", intensities(frame))
    spec = make_private_spec("X", ["CT={patient}_{frame}.nii.gz"])
    target = ConversionTarget.of(tmp_path / "raw", tmp_path / "preprocessed", 1, "X")
    assert len(convert(Conversion(spec, tmp_path / "source"), target)) == 2
    assert not (target.raw / "splits_final.json").exists()
    assert (target.preprocessed / "nnssl" / "cases.json").exists()
    (target.preprocessed / "nnUNetPlans_2d").mkdir()
    with pytest.raises(ValueError, match="Train fold all"):
        check_fold(target.preprocessed / "nnUNetPlans_2d", 0)


def one_file_per_structure(root: Path) -> None:
    """Three subjects in TotalSegmentator's layout: image, and a mask for each structure."""
    for number in (1, 2, 3):
        home = root / f"s000{number}"
        write(home / "ct.nii.gz", intensities(number))
        for value, name in enumerate(("liver", "spleen", "stomach"), 1):
            mask = (values_in(range(5)) == value).astype(np.uint8) * (255 if value == 3 else 1)
            write(home / "segmentations" / f"{name}.nii.gz", mask)


def masks(*names: str) -> list[str]:
    return [f"{name}={{case}}/segmentations/{name}.nii.gz" for name in names]


def test_one_file_for_each_structure_becomes_one_label(tmp_path: Path):
    one_file_per_structure(tmp_path / "source")
    spec = make_private_spec("X", ["CT={case}/ct.nii.gz"], masks=masks("liver", "stomach"))
    target = ConversionTarget.of(tmp_path / "raw", tmp_path / "pre", 50, spec.name)
    convert(Conversion(spec, tmp_path / "source"), target)
    label = sitk.ReadImage(str(target.raw / "labelsTr" / "s0001.nii.gz"))
    expected = np.array([0, 1, 0, 2, 0])[values_in(range(5))]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), expected)
    image = sitk.ReadImage(str(target.raw / "imagesTr" / "s0001_0000.nii.gz"))
    assert label.GetDirection() == pytest.approx(image.GetDirection())
    dataset = json.loads((target.raw / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "liver": 1, "stomach": 2}


def test_masks_that_are_missing_overlap_or_lie_elsewhere_are_named(tmp_path: Path):
    one_file_per_structure(tmp_path)
    folder = tmp_path / "s0002" / "segmentations"
    spec = make_private_spec("X", ["CT={case}/ct.nii.gz"], masks=masks("liver", "spleen"))
    shutil.copy(folder / "liver.nii.gz", folder / "spleen.nii.gz")
    with pytest.raises(ValueError, match=r"voxels in 'liver' and in 'spleen'; --overlap last"):
        check_source(Conversion(spec, tmp_path))
    assert check_source(Conversion(replace(spec, overlap="last"), tmp_path))[1].values == (0, 2)
    write(folder / "spleen.nii.gz", values_in((0,), (5, 8, 6)))
    with pytest.raises(ValueError, match=r"another grid: size .* of the mask of spleen"):
        check_source(Conversion(spec, tmp_path))
    (folder / "spleen.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"s0002: mask of spleen is missing .* --leave-out"):
        check_source(Conversion(spec, tmp_path))
    assert len(check_source(Conversion(spec, tmp_path, leave_out=["s0002"]))) == 2
    with pytest.raises(ValueError, match="there is no label beside it"):
        replace(spec, label="x")
    with pytest.raises(ValueError, match="same named groups"):
        make_private_spec("X", ["CT={case}/ct.nii.gz"], masks=["liver={other}.nii.gz"])


def test_a_datalist_names_files_freely(tmp_path: Path):
    """Of two folders with files of one name, channels in files of their own; one file is lost."""
    entries = []
    for place in ("a", "b"):
        names = [f"{place}/scan_{kind}.nii.gz" for kind in ("t1", "flair", "drawn")]
        for number, name in enumerate(names):
            array = intensities(number + ord(place)) if number < 2 else values_in((0, 4))
            write(tmp_path / "source" / name, array)
        entries.append({"fold": 0, "image": [f"./{names[0]}", names[1]], "label": names[2]})
    content = {"training": entries[:1], "validation": entries[1:], "testing": []}
    file = tmp_path / "source" / "dataset.json"
    file.write_text(json.dumps(content))
    spec = make_datalist_spec("X", ["T1,FLAIR=dataset.json"], None, ["tumour=4"])
    target = ConversionTarget.of(tmp_path / "raw", tmp_path / "pre", 50, spec.name)
    convert(Conversion(spec, tmp_path / "source"), target)
    assert sorted(os.listdir(target.raw / "labelsTr")) == ["a_scan_t1.nii.gz", "b_scan_t1.nii.gz"]
    label = sitk.ReadImage(str(target.raw / "labelsTr" / "b_scan_t1.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), values_in((0, 1)))
    flair = sitk.ReadImage(str(target.raw / "imagesTr" / "a_scan_t1_0001.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(flair), intensities(1 + ord("a")))
    (tmp_path / "source" / "b" / "scan_drawn.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"b_scan_t1: b/scan_drawn\.nii\.gz is not there"):
        check_source(Conversion(spec, tmp_path / "source"))
    file.write_text('{"training": [{"img": "x"}]}')
    with pytest.raises(ValueError, match="is no datalist"):
        check_source(Conversion(spec, tmp_path / "source"))
    with pytest.raises(ValueError, match="once, and no --label"):
        make_datalist_spec("X", ["T1=a.json", "FLAIR=b.json"])


STOCK = """
import sys
from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import {0} as command
sys.argv = ["x", "-d", "50"] + {1}
command()
"""


def stock(tmp_path: Path, command: str, *options: str) -> None:
    names = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "pre", "nnUNet_results": "results"}
    folders = {name: str(tmp_path / folder) for name, folder in names.items()}
    code = STOCK.format(command, list(options))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | folders, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True])
def test_stock_planning_takes_a_dataset_without_labels(flat: bool, tmp_path: Path):
    for n in range(3):
        if flat:
            photograph(tmp_path / "source" / f"{n}_left.png", n)
        else:
            write(tmp_path / "source" / f"{n}.nii.gz", intensities(n, (12, 20, 20)))
    spec = make_private_spec("X", ["CT={case}.nii.gz"])
    if flat:
        spec = read_spec(find_specs()["Retinopathy"])
    target = ConversionTarget.of(tmp_path / "raw", tmp_path / "pre", 50, spec.name)
    convert(Conversion(spec, tmp_path / "source"), target)
    stock(tmp_path, "extract_fingerprint_entry", "-np", "1", "--verify_dataset_integrity")
    stock(tmp_path, "plan_experiment_entry", "-gpu_memory_target", "1")
    found = json.loads((target.preprocessed / "dataset_fingerprint.json").read_text())
    lowest = found["foreground_intensity_properties_per_channel"]["0"]["min"]
    assert lowest > (100 if flat else -500)
    plans = json.loads((target.preprocessed / "nnUNetPlans.json").read_text())
    assert ("3d_fullres" in plans["configurations"]) == (not flat)


def test_labels_beside_their_images_are_no_images(tmp_path: Path):
    """One template may take the files of another; the narrower one has them."""
    for case in ("a", "b"):
        for ending in ("", "_t2"):
            write(tmp_path / f"{case}{ending}.nii.gz", intensities(1))
        write(tmp_path / f"{case}_seg.nii.gz", values_in((0, 1)))
    images = ["T1={case}.nii.gz", "T2={case}_t2.nii.gz"]
    spec = make_private_spec("X", images, "{case}_seg.nii.gz", ["tumour"])
    for each in (spec, spec.without_labels()):
        cases = [found.case for found in check_source(Conversion(each, tmp_path))]
        assert [case.images for case in cases] == [
            (("a.nii.gz",), ("a_t2.nii.gz",)),
            (("b.nii.gz",), ("b_t2.nii.gz",)),
        ]


def test_names_in_any_script_stay_apart(tmp_path: Path):
    """Composed and decomposed letters are the same; names that would become one are refused."""
    names = ["Müller", "Möller", "王伟", "李娜", "Ωmega"]
    for name in names:
        write(tmp_path / unicodedata.normalize("NFD", name) / "t1.nii.gz", intensities(1))
        write(tmp_path / unicodedata.normalize("NFC", name) / "seg.nii.gz", values_in((0, 1)))
    spec = make_private_spec("X", ["T1={patient}/t1.nii.gz"], "{patient}/seg.nii.gz", ["tumour"])
    cases = [found.case for found in check_source(Conversion(spec, tmp_path))]
    assert [case.patient for case in cases] == sorted(names)
    for name in ("p 1", "p#1"):
        write(tmp_path / name / "t1.nii.gz", intensities(1))
        write(tmp_path / name / "seg.nii.gz", values_in((0, 1)))
    with pytest.raises(ValueError, match=r"p-1: would be the name of several patients, \['p #?1"):
        check_source(Conversion(spec, tmp_path))
