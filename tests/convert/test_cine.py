"""Time frames without labels: names, geometry, what is left out, what stock commands see."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnssl.cli import convert as command
from nnssl.convert.cine import FOLDER, check_cines, write_cines
from nnssl.convert.engine import ConversionTarget, convert
from nnssl.convert.planning import Conversion
from nnssl.convert.sources import ConversionError
from nnssl.convert.spec import DatasetSpec, find_specs, read_spec
from nnssl.nnunet.cases import CaseRecord

FRAMES = 13  # one more than the last labelled frame


@pytest.fixture
def cined(miniature) -> Path:
    """The miniature with a cine of every patient, whose frames 1 (or 4) and 12 are the cases."""
    for home in sorted(miniature.root.glob("*/patient*")):
        write_cine(home, int(home.name[-3:]))
    return miniature.root


def write_cine(home: Path, seed: int, frames: int = FRAMES) -> None:
    values = np.random.default_rng(seed).normal(size=(frames, 3, 6, 5)).astype(np.float32)
    image = sitk.GetImageFromArray(values, isVector=False)
    image.SetSpacing((1.5, 1.25, 8.0, 0.04))
    image.SetOrigin((-3.0, 4.5, 10.0, 0.0))
    turned = np.eye(4)
    turned[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
    image.SetDirection(turned.ravel())
    sitk.WriteImage(image, str(home / f"{home.name}_4d.nii.gz"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw" / "Dataset027_ACDC"


@pytest.fixture
def write(spec: DatasetSpec, cined: Path, raw: Path) -> Callable[..., Path]:
    """``write(workers)``: all frames of the miniature."""

    def all_frames(workers: int = 1, to: Path = raw) -> Path:
        conversion = Conversion(spec, cined, workers=workers)
        return write_cines(conversion, to, check_cines(conversion))

    return all_frames


def test_every_frame_but_the_cases(write, raw: Path):
    folder = write()
    assert folder == raw / "nnssl_unlabelled" / "cine"
    assert os.listdir(folder.parent) == ["cine"]
    names = {path.name for path in folder.glob("*.nii.gz")}
    frames = set(range(1, FRAMES + 1))
    for patient, cases in ((1, {1, 12}), (4, {4, 12}), (102, {1, 12})):
        expected = {f"patient{patient:03d}_frame{k:02d}_0000.nii.gz" for k in frames - cases}
        assert {name for name in names if name.startswith(f"patient{patient:03d}")} == expected
    assert len(names) == 8 * (FRAMES - 2)


def test_values_and_geometry_of_a_frame(write, cined: Path):
    frame = sitk.ReadImage(str(write() / "patient004_frame07_0000.nii.gz"))
    cine = sitk.ReadImage(str(cined / "training/patient004/patient004_4d.nii.gz"))
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(frame), sitk.GetArrayFromImage(cine)[7 - 1]
    )
    np.testing.assert_allclose(frame.GetSpacing(), (1.5, 1.25, 8.0), rtol=1e-6)
    np.testing.assert_allclose(frame.GetOrigin(), (-3.0, 4.5, 10.0), rtol=1e-6)
    np.testing.assert_allclose(frame.GetDirection(), (1, 0, 0, 0, 0, 1, 0, -1, 0), atol=1e-6)
    assert frame.GetPixelID() == cine.GetPixelID()


def test_records_say_patient_and_source(write):
    folder = write()
    cases = json.loads((folder / "cases.json").read_text())["cases"]
    assert len(cases) == 8 * (FRAMES - 2)
    entry = cases["patient101_frame02"]
    assert entry["orientation"] == "LIP"
    assert CaseRecord(*(entry[k] for k in ("patient", "dataset"))).patient == "patient101"
    record = json.loads((folder / "conversion.json").read_text())
    assert record["files"]["patient101_frame02_0000.nii.gz"] == {
        "source": "testing/patient101/patient101_4d.nii.gz",
        "frame": 1,
        "sha256": entry["sha256"],
    }
    assert record["citation"].startswith("O. Bernard")


def test_stock_commands_do_not_see_them(write, spec, cined: Path, raw: Path, tmp_path: Path):
    from nnunetv2.utilities.utils import (
        get_filenames_of_train_images_and_targets,
        get_identifiers_from_splitted_dataset_folder,
    )

    convert(
        Conversion(spec, cined),
        ConversionTarget.of(raw.parent, tmp_path / "preprocessed", 27, "ACDC"),
    )
    before = get_filenames_of_train_images_and_targets(str(raw))
    write()
    assert get_filenames_of_train_images_and_targets(str(raw)) == before
    assert len(before) == 12
    found = get_identifiers_from_splitted_dataset_folder(str(raw / "imagesTr"), ".nii.gz")
    assert set(found) == set(before)


def test_workers_change_nothing_and_a_second_run_neither(tree, write, raw: Path, tmp_path: Path):
    folder = write()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert tree(write(workers=2, to=tmp_path / "other")) == tree(folder)


def test_frames_of_other_files_are_refused(write, cined: Path):
    write()
    write_cine(cined / "training" / "patient003", seed=99)
    with pytest.raises(ValueError, match=r"cine exists already.*other files.*; delete it"):
        write()


def test_what_is_left_out(spec: DatasetSpec, cined: Path):
    cines = check_cines(Conversion(spec, cined, leave_out=["patient005", "patient002_frame12"]))
    assert "patient005" not in {each.patient for each in cines}
    frames = next(each.frames for each in cines if each.patient == "patient002")
    assert "patient002_frame12" not in frames  # neither a case nor a frame


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


DAMAGES = {
    "truncated": (truncate, "patient002_4d.nii.gz: is truncated"),
    "no image": (lambda path: path.write_bytes(b"x" * 99), "patient002_4d.nii.gz: cannot be read"),
    "three axes": (
        lambda path: shutil.copy(path.with_name("patient002_frame01.nii.gz"), path),
        r"patient002_4d.nii.gz: has size \(5, 6, 3\); a fourth axis of frames is needed",
    ),
    "twice": (
        lambda path: shutil.copy(path, path.parents[2] / path.name),
        "training/patient002/patient002_4d.nii.gz: is there twice, the other is patient002_4d",
    ),
    "in both sets": (
        lambda path: shutil.copy(path, path.parents[2] / "testing" / path.name),
        "patient002_4d.nii.gz: is there twice, the other is",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(spec: DatasetSpec, cined: Path, name: str):
    damage, words = DAMAGES[name]
    damage(cined / "training" / "patient002" / "patient002_4d.nii.gz")
    with pytest.raises(ConversionError, match=words) as caught:
        check_cines(Conversion(spec, cined))
    assert "patient001" not in str(caught.value)


def test_no_cines_at_all(spec: DatasetSpec, miniature):
    for path in miniature.root.glob("*/*/*_4d.nii.gz"):
        path.unlink()
    with pytest.raises(ConversionError, match=r"there are no files of time frames(.|\n)*--cine"):
        check_cines(Conversion(spec, miniature.root))


def test_a_dataset_without_cines(cined: Path):
    with pytest.raises(ValueError, match="spec of LiTS17 has no 'unlabelled:' entry"):
        check_cines(Conversion(read_spec(find_specs()["LiTS17"]), cined))


@pytest.mark.parametrize(
    "change",
    [
        {"unlabelled": r"(?P<other>\d+)_4d\.nii"},
        {"unlabelled": r"patient_4d\.nii"},
        {"case": "{patient}"},
        {"channels": dict.fromkeys("AB", r"(?P<patient>\d+)_(?P<frame>\d+)\.nii")},
    ],
)
def test_impossible_entries_are_refused(spec: DatasetSpec, change: dict):
    with pytest.raises(ValueError, match=r"unlabelled is .* it needs the named groups"):
        replace(spec, **({"label": None} if "channels" in change else {}) | change)


def test_the_command(cined: Path, tmp_path: Path, raw: Path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    arguments = ["ACDC", str(cined), "-d", "27", "--workers", "1"]
    command.main([*arguments, "--cine", "--dry-run"])
    assert "88 frames without labels of 8 patients" in capsys.readouterr().out
    assert not raw.exists()
    command.main(arguments)
    assert not (raw / FOLDER).exists()
    command.main([*arguments, "--cine"])  # the conversion is complete: frames are added
    said = capsys.readouterr().out
    assert f"nnssl_preprocess_unlabelled -d 27 -c 2d -i {raw / FOLDER} --patient '" in said
    pattern = said.rpartition("--patient '")[2].partition("'")[0]
    cases = json.loads((raw / FOLDER / "cases.json").read_text())["cases"]
    for path in (raw / FOLDER).glob("*.nii.gz"):
        found = re.search(pattern, path.name)[1]
        assert found == cases[path.name.removesuffix("_0000.nii.gz")]["patient"]
    assert len(list((raw / FOLDER).glob("*.nii.gz"))) == 88
    truncate(cined / "training/patient001/patient001_4d.nii.gz")
    with pytest.raises(SystemExit, match=r"patient001_4d\.nii\.gz: is truncated"):
        command.main(["ACDC", str(cined), "-d", "28", "--cine"])
    assert os.listdir(raw.parent) == [raw.name]
