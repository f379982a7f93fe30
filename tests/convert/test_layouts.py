"""Every dataset spec on its native layout, whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from time import process_time

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from layouts import LAYOUTS
from native import intensities, values_in, write

from nnssl.convert.cine import check_cines
from nnssl.convert.engine import ConversionTarget, check_source, convert
from nnssl.convert.planning import Conversion, plan_cases
from nnssl.convert.records import find_doubts
from nnssl.convert.sources import ConversionError, Inventory
from nnssl.convert.spec import DatasetSpec, find_specs, read_spec
from nnssl.convert.tasks import CheckedCase
from nnssl.convert.volumes import compare_geometry


def converted(name: str, tmp_path: Path) -> tuple[DatasetSpec, Path, list[CheckedCase]]:
    LAYOUTS[name].make(tmp_path / "source")
    spec = read_spec(find_specs()[name]).derive_from(tmp_path / "source")
    target = ConversionTarget.of(tmp_path / "raw", tmp_path / "preprocessed", 50, spec.name)
    return spec, target.raw, convert(Conversion(spec, tmp_path / "source"), target)


def array(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_every_spec_has_a_layout():
    assert set(find_specs()) == set(LAYOUTS) | {"ACDC"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_native_layout_becomes_a_dataset(name: str, tmp_path: Path):
    expected = LAYOUTS[name]
    spec, raw, checked = converted(name, tmp_path)
    training = [each for each in checked if each.case.part == "Tr"]
    assert (len(training), len(checked) - len(training)) == (expected.training, expected.test)
    assert len({each.case.patient for each in training}) == expected.patients
    dataset = json.loads((raw / "dataset.json").read_text())
    assert list(dataset["channel_names"].values()) == list(spec.channels)
    values: set[int] = set()
    for each in training:
        images = [
            sitk.ReadImage(str(raw / "imagesTr" / f"{each.case.identifier}_{k:04d}.nii.gz"))
            for k in range(len(spec.channels))
        ]
        label = sitk.ReadImage(str(raw / "labelsTr" / f"{each.case.identifier}.nii.gz"))
        values |= set(np.unique(sitk.GetArrayFromImage(label)).tolist())
        for other in [*images, label]:
            assert compare_geometry(images[0], other) == []
            assert other.GetDimension() == 3
    assert values == set(range(expected.values)) == spec.values


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_patient_is_in_two_folds(name: str, tmp_path: Path):
    _, raw, _ = converted(name, tmp_path)
    cases = json.loads((raw / "cases.json").read_text())["cases"]
    validated: dict[str, int] = {}
    for number, fold in enumerate(json.loads((raw / "splits_final.json").read_text())):
        patients = [{cases[case]["patient"] for case in fold[side]} for side in ("train", "val")]
        assert not patients[0] & patients[1]
        for case in fold["val"]:
            assert validated.setdefault(cases[case]["patient"], number) == number


def test_hcps_extended_package_has_a_folder_of_the_same_number_inside(tmp_path: Path):
    """FreeSurfer's own folder, ``T1w/<subject>``, is no patient; an empty patient is one still."""
    LAYOUTS["HCP"].make(tmp_path)
    (tmp_path / "100307" / "T1w" / "100307" / "surf").mkdir(parents=True)
    conversion = Conversion(read_spec(find_specs()["HCP"]), tmp_path)
    assert plan_cases(conversion)[1] == []
    (tmp_path / "100999" / "T1w" / "100999").mkdir(parents=True)
    assert [each.where for each in plan_cases(conversion)[1]] == ["100999"]


def test_planning_time_grows_with_the_number_of_files(monkeypatch):
    """Folders and files without a disk: eight times as many take eight times as long, not 64."""
    spec = read_spec(find_specs()["UKBiobank_brain"])

    def seconds(subjects: int) -> float:
        folders = [f"{1000000 + k}_20252_2_0" for k in range(subjects)]
        inventory = Inventory(Path("/x"), [f"{each}/T1/T1.nii.gz" for each in folders], folders)
        monkeypatch.setattr(Inventory, "of", lambda root: inventory)
        start = process_time()
        cases, _ = plan_cases(Conversion(replace(spec, label=None), Path("/")))
        assert len(cases) == subjects
        return process_time() - start

    assert min(seconds(4000) for _ in range(2)) < 24 * min(seconds(500) for _ in range(3))


def test_volumes_whose_header_says_nothing_are_named(tmp_path: Path):
    """As LiTS' volumes 28 to 47: identity affines, in NIfTI's world."""
    LAYOUTS["LiTS17"].make(tmp_path)
    nothing = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
    for kind, array in (("volume", intensities(28)), ("segmentation", values_in((0, 1, 2)))):
        folder = "ct" if kind == "volume" else "seg"
        path = write(tmp_path / "val" / folder / f"{kind}-28.nii", array, nothing, (0, 0, 0))
        image = sitk.ReadImage(str(path))
        image.SetSpacing((1, 1, 1))
        sitk.WriteImage(image, str(path))
    checked = check_source(Conversion(read_spec(find_specs()["LiTS17"]), tmp_path))
    (doubt,) = find_doubts(checked)
    assert doubt.startswith("1 images have headers that say nothing")
    assert "--leave-out volume-28;" in doubt


def test_mnms_frames_are_those_of_the_table_and_the_rest_is_for_pretraining(tmp_path: Path):
    _, raw, _ = converted("MnMs", tmp_path)
    source = tmp_path / "source"
    for frame in (0, 2):
        name = f"A0S9V1_frame{frame + 1:02d}"
        image = array(raw / "imagesTr" / f"{name}_0000.nii.gz")
        assert np.array_equal(image, intensities(10 + frame))
        assert array(raw / "labelsTr" / f"{name}.nii.gz").any()
    conversion = Conversion(read_spec(find_specs()["MnMs"]), source)
    cines = {each.patient: set(each.frames.values()) for each in check_cines(conversion)}
    assert (cines["A0S9V1"], cines["A0S9V2"]) == ({1, 3}, {0, 1, 2, 3})


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("A0S9V1,Siemens,A,1,0,2", "A0S9V1,Siemens,A,1,1,2", "label of frame 2 is empty"),
        ("A0S9V1,Siemens,A,1,0,2", "A0S9V1,Siemens,A,1,0,9", "holds 4 frames, of which number 10"),
        ("A0S9V1,Siemens,A,1,0,2", "A0S9V1,Siemens,A,1,,", "has a label, but no frames ED and ES"),
        ("A0S9V1,Siemens,A,1,0,2", "A0S9V1,Siemens,A,1,a,2", "frames count from 0"),
        ("A0S9V1", "B1", "A0S9V1: has no line in the table of patients"),
        ("External code", "code", "no .csv file with the columns External code, ED, ES"),
    ],
)
def test_mnms_tables_that_do_not_fit_the_images_are_refused(tmp_path, before, after, message):
    LAYOUTS["MnMs"].make(tmp_path)
    (file,) = tmp_path.glob("*.csv")
    file.write_text(file.read_text("utf-8").replace(before, after), "utf-8")
    with pytest.raises(ConversionError) as error:
        check_source(Conversion(read_spec(find_specs()["MnMs"]), tmp_path))
    assert message in str(error.value)


def test_radiographs_beside_ct_are_passed_over(tmp_path: Path):
    LAYOUTS["LIDC"].make(tmp_path)
    cases, problems = plan_cases(Conversion(read_spec(find_specs()["LIDC"]), tmp_path))
    assert [case.identifier for case in cases] == [f"LIDC-IDRI-000{n}_1.3.6.{n}" for n in (1, 2, 3)]
    assert problems == []


def test_what_a_dataset_does_not_say_of_itself_is_named(tmp_path: Path):
    for name, message in (
        ("TotalSegmentator", "no folder segmentations"),
        ("nnUNet_v1", "is miss"),
    ):
        with pytest.raises(ValueError, match=message):
            read_spec(find_specs()[name]).derive_from(tmp_path)
    LAYOUTS["nnUNet_v1"].make(tmp_path)
    file = tmp_path / "dataset.json"
    file.write_text(file.read_text().replace('"FLAIR"', '"T1"'))
    with pytest.raises(ValueError, match="two channels have one name"):
        read_spec(find_specs()["nnUNet_v1"]).derive_from(tmp_path)


def test_every_licence_is_named_or_said_to_be_unknown():
    for path in find_specs().values():
        assert "as the provider states" not in read_spec(path).licence


def test_what_a_mac_puts_into_archives_is_passed_over(tmp_path: Path):
    LAYOUTS["MMWHS_CT"].make(tmp_path)
    for name in ("__MACOSX/ct_train", ".trash"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "ct_train_1001_image.nii.gz").write_bytes(b"x")
    cases, problems = plan_cases(Conversion(read_spec(find_specs()["MMWHS_CT"]), tmp_path))
    assert len(cases) == 4
    assert problems == []


def test_freesurfer_classes_and_geometry(tmp_path: Path):
    import nibabel

    _, raw, _ = converted("ABIDE", tmp_path)
    home = tmp_path / "source/Outputs/freesurfer/5.1/Caltech_0051451/mri"
    before = nibabel.load(home / "aparc+aseg.mgz")
    after = nibabel.load(raw / "labelsTr" / "Caltech_0051451.nii.gz")
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)
    old, new = np.asarray(before.dataobj), np.asarray(after.dataobj)
    for code, value in {8: 1, 47: 1, 42: 3, 1035: 3, 41: 4, 16: 14, 77: 0, 251: 0}.items():
        assert set(new[old == code]) == {value}


def test_the_first_time_frame_is_taken(tmp_path: Path):
    _, raw, _ = converted("STACOM_LV_4D", tmp_path)
    before = array(tmp_path / "source" / "01" / "img.nii.gz")
    np.testing.assert_array_equal(array(raw / "imagesTr" / "stacom_01_0000.nii.gz"), before[0])


def test_end_systole_is_the_smallest_cavity_and_slices_follow_the_anatomy(tmp_path: Path):
    _, raw, checked = converted("STACOM_LV", tmp_path)
    assert {each.case.identifier[-3:] for each in checked if each.case.part == "Tr"} == {
        "ph0",
        "ph2",
    }
    assert [e.case.patient for e in checked if e.case.part == "Ts"] == ["DET0000104"]
    volume = array(raw / "imagesTr" / "DET0000101_ph2_0000.nii.gz")
    for k, number in enumerate((2, 0, 1)):
        path = tmp_path / "source" / "DET0000101" / f"DET0000101_SA{number}_ph2.dcm"
        np.testing.assert_array_equal(volume[k], array(path)[0])


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("CHAOS_CT", "ct_1"),
        ("CHAOS_MR", "T1DUAL_OutPhase_1"),
        ("CHAOS_MR", "T2SPIR_1"),
        ("CHAOS_T1", "T1_1"),
    ],
)
def test_pictures_lie_on_their_slices(name: str, case: str, tmp_path: Path):
    """The miniatures draw slice z of a fixed label; file names count from the top."""
    _, raw, _ = converted(name, tmp_path)
    new = array(raw / "labelsTr" / f"{case}.nii.gz")
    size = (5, 8, 7)
    greys = np.resize((0, 255) if name == "CHAOS_CT" else (0, 63, 126, 189, 252), size)
    numbers = {0: 0, 255: 1} if name == "CHAOS_CT" else {0: 0, 63: 1, 126: 2, 189: 3, 252: 4}
    np.testing.assert_array_equal(new, np.vectorize(numbers.get)(greys))


def test_decathlon_equals_nnunets_own_converter(tmp_path: Path, monkeypatch):
    """Its name is missing in the folder here, and nnU-Net needs it, so the folder is linked."""
    from nnunetv2.dataset_conversion import convert_MSD_dataset as stock

    _, raw, _ = converted("Decathlon", tmp_path)
    (tmp_path / "theirs").mkdir()
    for part in ("imagesTr", "imagesTs"):
        for path in sorted((tmp_path / "source" / part).glob("prostate*")):
            stock.split_4d_nifti(str(path), str(tmp_path / "theirs"))
            for channel in range(2):
                name = f"{path.name[:-7]}_{channel:04d}.nii.gz"
                images = [sitk.ReadImage(str(f / name)) for f in (raw / part, tmp_path / "theirs")]
                assert compare_geometry(*images) == []
                np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, images))


def test_brats_regions_are_nnunets(tmp_path: Path):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    _, raw, _ = converted("BraTS2018", tmp_path)
    dataset = json.loads((raw / "dataset.json").read_text())
    manager = LabelManager(dataset["labels"], dataset["regions_class_order"])
    assert manager.has_regions
    before = array(tmp_path / "source/HGG/Brats18_2013_2_1/Brats18_2013_2_1_seg.nii.gz")
    after = array(raw / "labelsTr" / "Brats18_2013_2_1.nii.gz")
    for old, new in {0: 0, 2: 1, 1: 2, 4: 3}.items():
        assert set(after[before == old]) == {new}


def test_a_lost_header_is_repaired_and_recorded(tmp_path: Path):
    _, raw, _ = converted("LiTS17", tmp_path)
    files = json.loads((raw / "conversion.json").read_text())["files"]
    noted = {name for name, entry in files.items() if "notes" in entry}
    assert noted == {"labelsTr/volume-28.nii.gz"}
    assert "took the geometry of its image" in files["labelsTr/volume-28.nii.gz"]["notes"][0]


def test_colours_become_channels_of_flat_volumes(tmp_path: Path):
    _, raw, _ = converted("Retinopathy", tmp_path)
    before = array(tmp_path / "source" / "train" / "000c1434d8d7.png")
    for channel in range(3):
        image = sitk.ReadImage(str(raw / "imagesTr" / f"000c1434d8d7_{channel:04d}.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[0], before[..., channel])
        assert image.GetSpacing() == (1.0, 1.0, 999.0)
    mask = array(raw / "labelsTr" / "000c1434d8d7.nii.gz")[0]
    np.testing.assert_array_equal(mask > 0, before[..., 0] > 0)
