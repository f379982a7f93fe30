"""Every format and its ways to be wrong."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from native import dicom, intensities, mgz, photograph, pictures, values_in, write

from nnssl.convert.readers.dicom import find_file_order, read_series
from nnssl.convert.readers.read import read_volume
from nnssl.convert.volumes import Reading, Volume, compare_geometry

TILT = np.tan(np.radians(20))


def volume(paths: Path | list[Path], like=(), **how) -> Volume:
    return read_volume([paths] if isinstance(paths, Path) else paths, Reading(**how), 0, like)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"])
def test_formats_give_the_same_volume(ending: str, tmp_path: Path):
    image = volume(write(tmp_path / f"a{ending}", intensities(1))).image
    expected = sitk.ReadImage(str(write(tmp_path / "b.mha", intensities(1))))
    np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (image, expected)))
    assert compare_geometry(image, expected) == []


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".mgz", ".mgh", ".nii", ".nii.gz"])
def test_half_a_file_is_refused(ending: str, tmp_path: Path):
    make = mgz if ending[:3] == ".mg" else write
    path = make(tmp_path / f"a{ending}", intensities(1))
    path = path.with_suffix(".raw") if ending == ".mhd" else path
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(ValueError, match=r"truncated|cannot be read|Expected"):
        volume(tmp_path / f"a{ending}")


def test_mgz_lies_where_freesurfer_put_it(tmp_path: Path):
    path = mgz(tmp_path / "a.mgz", intensities(3))
    sitk.WriteImage(volume(path).image, str(tmp_path / "b.nii.gz"))
    ours, theirs = nibabel.load(tmp_path / "b.nii.gz"), nibabel.load(path)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))


def skewed(path: Path, by: float) -> Path:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[0, 1] = by
    image = nibabel.Nifti1Image(intensities(1).T, affine)
    image.set_qform(None, 0)
    nibabel.save(image, path)
    return path


def test_skewed_axes_are_repaired_on_demand_only(tmp_path: Path):
    path = skewed(tmp_path / "a.nii", 0.01)
    with pytest.raises(ValueError, match="orthonormal"):
        volume(path)
    found = volume(path, headers="repair")
    assert found.notes == ("axes made orthogonal",)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found.image), intensities(1))
    axes = np.reshape(found.image.GetDirection(), (3, 3))
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(found.image.GetSpacing(), (2, 2, 3), atol=1e-3)
    with pytest.raises(ValueError, match="not orthogonal"):
        volume(skewed(tmp_path / "b.nii", 0.5), headers="repair")


def test_the_fourth_axis_needs_a_meaning(tmp_path: Path):
    path = write(tmp_path / "a.nii.gz", np.stack([intensities(1), intensities(2)]))
    with pytest.raises(ValueError, match="a volume of 3 axes is needed"):
        volume(path)
    with pytest.raises(ValueError, match="holds 2 channels; the dataset has 3"):
        volume(path, fourth_axis="channels", channels=3)
    second = read_volume([path], Reading(fourth_axis="channels", channels=2), 1).image
    np.testing.assert_array_equal(sitk.GetArrayFromImage(second), intensities(2))


def test_colours_need_three_channels(tmp_path: Path):
    path = photograph(tmp_path / "a.png", 1)
    with pytest.raises(ValueError, match="of 3 values"):
        volume(path)
    assert volume(path, channels=3).image.GetSize() == (30, 24, 1)


def test_slices_are_ordered_by_place(tmp_path: Path):
    """File names and instance numbers run against the slices here."""
    image = volume(dicom(tmp_path / "s", intensities(1))).image
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), intensities(1))
    assert image.GetSpacing() == pytest.approx((1.5, 1.25, 3.0))
    assert image.GetOrigin() == (-50.0, -60.0, -20.0)


def test_other_files_beside_the_slices_are_passed_over(tmp_path: Path):
    paths = dicom(tmp_path / "s", intensities(1))
    (tmp_path / "s" / "LICENSE").write_text("no image")
    assert volume([tmp_path / "s" / "LICENSE", *paths]).image.GetSize()[2] == 5
    with pytest.raises(ValueError, match="holds no DICOM file among 1 files"):
        volume(tmp_path / "s" / "LICENSE")


def test_a_missing_slice_is_no_uneven_distance(tmp_path: Path):
    paths = dicom(tmp_path / "s", intensities(1))
    with pytest.raises(ValueError, match=r"misses slices between .*00004.dcm and .*00002.dcm"):
        volume([path for path in paths if "00003" not in path.name], slices="resample")


def test_two_slices_at_one_place(tmp_path: Path):
    paths = dicom(tmp_path / "s", intensities(1)) + dicom(tmp_path / "t", intensities(2))
    with pytest.raises(ValueError, match="two slices at one place"):
        volume(paths)


def test_two_series_in_a_folder(tmp_path: Path):
    places = [(-50.0, -60.0, 3.0 * k + 50) for k in range(5)]
    more = dicom(tmp_path / "t", intensities(2), places=places, series="1.2.9")
    with pytest.raises(ValueError, match="holds 2 series"):
        volume(dicom(tmp_path / "s", intensities(1)) + more)


def test_slices_of_two_sizes(tmp_path: Path):
    places = [(-50.0, -60.0, 50.0)]
    more = dicom(tmp_path / "t", intensities(2)[:1, :-1], places=places)
    with pytest.raises(ValueError, match="slices of different sizes"):
        volume(dicom(tmp_path / "s", intensities(1)) + more)


def test_a_broken_slice_is_named(tmp_path: Path):
    paths = dicom(tmp_path / "s", intensities(1))
    paths[2].write_bytes(paths[2].read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"cannot be read in {paths[2].name}"):
        volume(paths)


def ramp(places: np.ndarray, shape=(16, 12)) -> np.ndarray:
    """Slices that show the same straight object: intensity is x + 10 y + 100 z, in mm."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.array([x * 1.5 + 10 * (y * 1.25 + p[1]) + 100 * p[2] for p in places])


def test_uneven_slices_are_refused_or_resampled(tmp_path: Path):
    places = np.array([(0, 0, z) for z in (0, 2, 4, 6, 9, 12)], float)
    paths = dicom(tmp_path / "s", ramp(places).astype(np.int16), places=places.tolist())
    with pytest.raises(ValueError, match=r"slice distances from 2.000 to 3.000 mm.*--resample"):
        volume(paths)
    found = volume(paths, slices="resample")
    assert "resampled: slice distances" in found.notes[0]
    np.testing.assert_allclose(found.image.GetSpacing(), (1.5, 1.25, 2.0))
    even = np.array([(0, 0, z) for z in range(0, 14, 2)], float)
    np.testing.assert_allclose(sitk.GetArrayFromImage(found.image), ramp(even), atol=1)


def test_gantry_tilt_is_refused_or_straightened(tmp_path: Path):
    """Slices shift along y by z tan(20 degrees); the straight volume shows the object unsheared."""
    places = np.array([(0, z * TILT, z) for z in range(0, 15, 3)], float)
    paths = dicom(tmp_path / "s", ramp(places).astype(np.int16), places=places.tolist())
    with pytest.raises(ValueError, match=r"a gantry tilt of 20\.0 degrees"):
        volume(paths)
    image = volume(paths, slices="resample").image
    values = sitk.GetArrayFromImage(image)
    straight = ramp(np.array([(0, 0, z) for z in range(0, 15, 3)], float), values.shape[1:])
    covered = np.zeros(values.shape, bool)
    for k, place in enumerate(places):
        first = int(np.ceil(place[1] / 1.25))
        covered[k, first : first + 15, :12] = True
    np.testing.assert_allclose(values[covered], straight[covered], atol=2)


def test_labels_are_straightened_with_their_slices(tmp_path: Path):
    places = [(0.0, z * TILT, float(z)) for z in range(0, 15, 3)]
    paths = dicom(tmp_path / "s", intensities(1, (5, 16, 12)), places=places)
    masks = pictures(
        tmp_path / "g", values_in((0, 255), (5, 16, 12)), [p.stem + ".png" for p in paths]
    )
    image = volume(paths, slices="resample").image
    label = volume(masks, like=paths, slices="resample").image
    assert compare_geometry(image, label) == []
    assert set(np.unique(sitk.GetArrayFromImage(label))) == {0, 255}


def test_pictures_need_a_known_order(tmp_path: Path):
    places = [(0.0, 0.0, float(z)) for z in (0, 6, 3, 9, 12)]
    odd = dicom(tmp_path / "s", intensities(1), places=places, instances={0: 9, 3: 1})
    with pytest.raises(ValueError, match="follow neither their places nor their instance numbers"):
        find_file_order(read_series(odd))
    assert find_file_order(read_series(dicom(tmp_path / "t", intensities(1)))) == [4, 3, 2, 1, 0]


def test_a_picture_of_another_size_is_named(tmp_path: Path):
    paths = dicom(tmp_path / "s", intensities(1))
    masks = pictures(tmp_path / "g", values_in((0, 255))[:, :-1], [p.stem + ".png" for p in paths])
    with pytest.raises(ValueError, match=r"size \(7, 7\) in IMG.*its slice has \(8, 7\)"):
        volume(masks, like=paths)


def test_values_that_are_not_finite(tmp_path: Path):
    array = intensities(1).astype(np.float32)
    array[0, 0, 0] = np.nan
    for ending in (".nii.gz", ".nrrd", ".mha"):
        with pytest.raises(ValueError, match="not finite"):
            volume(write(tmp_path / f"a{ending}", array))


def test_the_hash_covers_all_files(tmp_path: Path):
    path = write(tmp_path / "a.mhd", intensities(1))
    before = volume(path).sha256
    write(tmp_path / "a.mhd", intensities(2))
    assert volume(path).sha256 != before
