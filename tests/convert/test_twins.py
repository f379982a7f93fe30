"""Different patients with the same voxels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from nnssl.cli import convert as command
from nnssl.convert.engine import check_source
from nnssl.convert.planning import Conversion
from nnssl.convert.records import describe_identical_images
from nnssl.convert.spec import DatasetSpec
from nnssl.convert.volumes import hash_of_voxels


def make_twins(root: Path, frame: int = 12, dtype: str = "float32") -> None:
    """The image of patient 5 becomes that of patient 2, in another type and another place."""
    one, other = (root / f"training/patient{n:03d}/patient{n:03d}_frame{frame}" for n in (2, 5))
    image = sitk.ReadImage(f"{one}.nii.gz")
    copy = sitk.GetImageFromArray(sitk.GetArrayFromImage(image).astype(dtype))
    copy.CopyInformation(sitk.ReadImage(f"{other}.nii.gz"))
    sitk.WriteImage(copy, f"{other}.nii.gz")


def test_twins_are_found_whatever_their_type(miniature, spec: DatasetSpec):
    assert describe_identical_images(check_source(Conversion(spec, miniature.root))) == []
    make_twins(miniature.root)
    (twins,) = describe_identical_images(check_source(Conversion(spec, miniature.root)))
    assert twins.startswith("patient002_frame12 and patient005_frame12 have voxel-identical images")
    assert "their patients are patient002 and patient005; folds" in twins


def test_two_images_of_one_patient_are_no_twins(miniature, spec: DatasetSpec):
    home = miniature.root / "training" / "patient002"
    content = gzip.decompress((home / "patient002_frame01.nii.gz").read_bytes())
    (home / "patient002_frame12.nii.gz").write_bytes(gzip.compress(content))
    assert describe_identical_images(check_source(Conversion(spec, miniature.root))) == []


def test_shape_and_every_value_count():
    values = np.arange(24, dtype=np.int16)
    images = [sitk.GetImageFromArray(values.reshape(s)) for s in ((2, 3, 4), (4, 3, 2))]
    changed = values.copy()
    changed[-1] += 1
    images.append(sitk.GetImageFromArray(changed.reshape(2, 3, 4)))
    assert len({hash_of_voxels(image) for image in images}) == 3


def test_the_command_warns_and_goes_on(miniature, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    make_twins(miniature.root)
    words = "patient002_frame12 and patient005_frame12 have voxel-identical images"
    arguments = ["ACDC", str(miniature.root), "-d", "27", "--workers", "1"]
    command.main([*arguments, "--dry-run"])
    assert f"warning: {words}" in capsys.readouterr().err
    command.main(arguments)
    said = capsys.readouterr()
    assert f"warning: {words}" in said.err
    assert "--leave-out patient005" in said.err
    assert "16 cases of 8 patients" in said.out
    record = json.loads((tmp_path / "raw" / "Dataset027_ACDC" / "conversion.json").read_text())
    assert [text for text in record["warnings"] if text.startswith(words)] == record["warnings"]
    assert len(record["warnings"]) == 1
