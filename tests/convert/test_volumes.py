"""Single volumes: bias field, orientation, and files that are whole or an error."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnssl.convert.engine import ConversionTarget, convert
from nnssl.convert.planning import Conversion
from nnssl.convert.volumes import (
    compare_geometry,
    correct_bias_field,
    find_orientation,
    read_whole,
    write_image,
)


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes, as on a full disk: writing fails without a signal."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def noise(seed: int = 0) -> sitk.Image:
    values = np.random.default_rng(seed).integers(0, 4000, (9, 40, 40)).astype(np.int16)
    return sitk.GetImageFromArray(values)


@pytest.mark.parametrize("size", [0, 100, 10_000, 20_000])
def test_an_image_that_does_not_fit_on_the_disk_is_an_error(tmp_path: Path, size: int):
    with at_most(size), pytest.raises(OSError, match="Is the disk full"):
        write_image(noise(), tmp_path / "image.nii.gz")
    write_image(noise(), tmp_path / "image.nii.gz")
    read = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "image.nii.gz"))
    np.testing.assert_array_equal(read, sitk.GetArrayFromImage(noise()))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_every_type_of_voxels_is_read_back(tmp_path: Path, kind: type):
    voxels = np.arange(24).reshape(2, 3, 4).astype(kind)
    write_image(sitk.GetImageFromArray(voxels), tmp_path / "image.nii.gz")
    read = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "image.nii.gz"))
    np.testing.assert_array_equal(read, voxels)


def test_damage_of_a_file_is_seen(tmp_path: Path):
    file = tmp_path / "image.nii.gz"
    assert read_whole(file) is None
    write_image(noise(), file)
    content = file.read_bytes()
    assert read_whole(file) is not None
    for damaged in (b"", content[:-9], content[:500], content[:900] + b"0" + content[901:]):
        file.write_bytes(damaged)
        assert read_whole(file) is None


@pytest.mark.parametrize("headers", ["exact", "repair"])
@pytest.mark.parametrize("size", [10_000, 20_000, 30_000])
def test_a_conversion_onto_a_full_disk_ends_equal_after_a_repeat(
    tmp_path: Path, two_patients, spec, tree, size: int, headers: str
):
    """Images are decoded and written anew where headers are to be repaired, else copied."""
    source, spec = two_patients(), replace(spec.without_labels(), headers=headers)
    for number, file in enumerate(sorted(source.root.rglob("*_frame??.nii.gz"))):
        voxels = np.random.default_rng(number).integers(0, 4000, (9 + number, 40, 40))
        source.volume(file, voxels.astype(np.int16))
    target, other = (
        ConversionTarget.of(tmp_path / name, tmp_path / f"{name}_preprocessed", 27, "ACDC")
        for name in ("full", "whole")
    )
    with at_most(size), pytest.raises(OSError, match=r"\.nii\.gz|File too large"):
        convert(Conversion(spec, source.root), target)
    assert target.partial.is_dir()
    convert(Conversion(spec, source.root), target)
    convert(Conversion(spec, source.root), other)
    assert tree(target.raw) == tree(other.raw)


def test_a_damaged_file_of_an_interrupted_run_is_written_anew(
    tmp_path: Path, two_patients, spec, tree
):
    source = two_patients()
    target = ConversionTarget.of(tmp_path / "raw", tmp_path / "preprocessed", 27, "ACDC")
    convert(Conversion(spec, source.root), target)
    whole = tree(target.raw)
    target.raw.rename(target.partial)
    damaged = sorted(target.partial.rglob("*_0000.nii.gz"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-5])
    convert(Conversion(spec, source.root), target)
    assert tree(target.raw) == whole


def test_n4_flattens_a_ramp_and_keeps_the_geometry(miniature):
    ramp = np.broadcast_to(np.linspace(400, 800, 24), (4, 24, 24)).astype(np.int16)
    image = sitk.GetImageFromArray(ramp)
    image.SetDirection(miniature.DIRECTION)
    corrected = correct_bias_field(image)
    assert corrected.GetPixelID() == sitk.sitkFloat32
    assert compare_geometry(image, corrected) == []
    assert sitk.GetArrayFromImage(corrected).std() < 0.5 * ramp.std()


def test_orientation():
    image = sitk.Image(2, 2, 2, sitk.sitkUInt8)
    assert find_orientation(image) == "LPS"
    image.SetDirection((-1, 0, 0, 0, 0, 1, 0, 1, 0))
    assert find_orientation(image) == "RSP"
