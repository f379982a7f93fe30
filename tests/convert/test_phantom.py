"""The synthetic heart is heart-like, repeatable and honest about being synthetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnssl.convert.engine import ConversionTarget, convert
from nnssl.convert.phantom import SIZES, draw_patient, write_phantom
from nnssl.convert.planning import Conversion

NUMBERS = range(1, 11)


@pytest.fixture(scope="module")
def patients():
    return [draw_patient(0, number) for number in NUMBERS]


def volumes_ml(frame) -> list[float]:
    voxel = float(np.prod(frame.spacing)) / 1000
    return [float((frame.labels == label).sum()) * voxel for label in (1, 2, 3)]


def test_frames_have_all_structures_and_the_promised_sizes(patients):
    for frames, _ in patients:
        for frame in frames.values():
            assert frame.image.shape == frame.labels.shape
            assert frame.image.shape[1:] == SIZES["small"]
            assert 6 <= len(frame.image) <= 12
            assert set(np.unique(frame.labels)) == {0, 1, 2, 3}
            assert 1.2 <= frame.spacing[0] == frame.spacing[1] <= 1.9
            assert 5 <= frame.spacing[2] <= 10


def test_the_heart_contracts_and_keeps_its_muscle(patients):
    for frames, _ in patients:
        right, muscle, left = (
            np.array(v) for v in zip(*map(volumes_ml, frames.values()), strict=True)
        )
        assert left[1] < 0.9 * left[0]
        assert right[1] < right[0]
        assert 0.7 < muscle[1] / muscle[0] < 1.3
        assert 30 < left[0] < 400


def test_blood_is_bright_and_muscle_dark(patients):
    for frames, _ in patients:
        for frame in frames.values():
            right, muscle, left = (frame.image[frame.labels == k].mean() for k in (1, 2, 3))
            assert left > 1.5 * muscle
            assert right > 1.3 * muscle


def test_the_cavity_is_surrounded_by_muscle(patients):
    for frames, _ in patients:
        labels = frames["ED"].labels
        for axis in (1, 2):
            cut = np.diff(np.where(labels == 3, 1, np.where(labels == 2, 0, 9)), axis=axis)
            assert not np.isin(cut, (8, -8)).any()  # no step between cavity and anything else


def test_patients_differ_and_repeat(patients):
    again = draw_patient(0, 3)
    np.testing.assert_array_equal(again[0]["ES"].image, patients[2][0]["ES"].image)
    spacings = {frames["ED"].spacing for frames, _ in patients}
    assert len(spacings) == len(patients)
    assert {info["Group"] for _, info in patients} == {"NOR", "DCM", "HCM", "MINF", "RV"}
    other = draw_patient(1, 3)[0]["ED"].image
    assert other.shape != again[0]["ED"].image.shape or (other != again[0]["ED"].image).any()


def test_it_is_written_in_the_native_layout_and_converts(tmp_path: Path, spec, tree):
    write_phantom(tmp_path / "phantom", patients=3, seed=5)
    files = tree(tmp_path / "phantom")
    assert len(files) == 3 * 5 + 1
    assert files["README.txt"].startswith(b"SYNTHETIC DATA")
    target = ConversionTarget.of(tmp_path / "raw", tmp_path / "preprocessed", 27, "ACDC")
    assert len(convert(Conversion(spec, tmp_path / "phantom"), target)) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patients": 0}, "patients is 0; allowed: 1 to 999"),
        ({"size": "huge"}, "size is 'huge'; allowed: small, full"),
        ({}, "is not empty"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, tree, options: dict, message: str):
    (tmp_path / "old").touch()
    with pytest.raises(ValueError, match=message):
        write_phantom(tmp_path, **options)
    assert list(tree(tmp_path)) == ["old"]
