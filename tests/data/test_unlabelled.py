"""Images without labels: nnU-Net's own preprocessing beside the dataset, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from damaged import make_damaged
from judging import ACCEPTED, REFUSED, judge, preprocess_image
from native import dicom

from nnssl.cli.preprocess_unlabelled import main
from nnssl.convert.sources import ConversionError
from nnssl.data.case_table import DataFolders, dense_target_folder
from nnssl.data.unlabelled import job as unlabelled_job
from nnssl.data.unlabelled import preprocess as unlabelled
from nnssl.data.unlabelled import records
from nnssl.data.unlabelled.frames import count_frames, read_frames
from nnssl.data.unlabelled.job import PreprocessingPlan
from nnssl.data.unlabelled.preprocess import (
    UnlabelledTask,
    preprocess_unlabelled,
    remove_collection,
)
from nnssl.data.unlabelled.records import (
    find_collections,
    read_images,
    read_manifest,
    read_records,
    record_file,
)
from nnssl.data.unlabelled.sources import FileChoice, ImageSource, share
from nnssl.nnunet.images import open_image


def cine(file: Path, images: list[Path]) -> None:
    """A 4D file of the voxels of 3D files."""
    first = nibabel.load(images[0])
    array = np.stack([nibabel.load(image).get_fdata(dtype=np.float32) for image in images], 3)
    nibabel.save(nibabel.Nifti1Image(array, first.affine, first.header), file)


@pytest.fixture
def folder(tiny_dataset: Any, tmp_path: Path) -> Path:
    """An image and a cine of three frames, copies of images of the dataset, in sub-folders."""
    raw = tiny_dataset.raw / "imagesTr"
    made = tmp_path / "more"
    (made / "a").mkdir(parents=True)
    (made / "b").mkdir()
    shutil.copy(raw / "p1_f0_0000.nii.gz", made / "a" / "p1_again_0000.nii.gz")
    cine(made / "b" / "p2_4d.nii.gz", [raw / f"p2_f{k}_0000.nii.gz" for k in (0, 1, 0)])
    return made


@pytest.fixture
def task(tiny_dataset: Any, folder: Path) -> UnlabelledTask:
    plan = PreprocessingPlan(tiny_dataset.plans, "2d", tiny_dataset.dataset_json)
    choice = FileChoice(plan.endings, patient=r"(p\d)_")
    return UnlabelledTask(tiny_dataset.preprocessed, folder, "more", plan, choice)


def names(task: UnlabelledTask) -> list[str]:
    return [image.identifier for image in read_images(task.folder)]


FRAMES = [f"p2_4d_frame0{k}" for k in (1, 2, 3)]


def test_images_are_preprocessed_as_nnunet_does_and_lie_in_nnssls_own_folder(
    task: UnlabelledTask, tiny_dataset: Any
) -> None:
    """Bit for bit, frames of a cine too; nnU-Net's folder stays as it was."""
    stock = tiny_dataset.preprocessed / "nnUNetPlans_2d"
    before = sorted(stock.iterdir())
    done = preprocess_unlabelled(task, 1)
    assert (done.written, done.kept, done.gone, done.patients) == (4, 0, 0, 2)
    assert sorted(stock.iterdir()) == before
    assert task.folder == stock.parent / "nnssl" / stock.name / "unlabelled" / "more"
    copies = dict(zip(["p1_again", *FRAMES], ["p1_f0", "p2_f0", "p2_f1", "p2_f0"], strict=True))
    assert names(task) == list(copies)
    for image in read_images(task.folder):
        own = open_image(task.folder / f"{image.identifier}.b2nd")[:]
        assert np.array_equal(own, open_image(stock / f"{copies[image.identifier]}.b2nd")[:])
        assert image.shape == own.shape[1:]
        assert image.patient == image.identifier[:2]
        assert image.orientation == "LPS"
        assert image.spacing == pytest.approx((5.0, 1.5, 1.5))
    frames = read_images(task.folder)[1:]
    assert [image.frame for image in frames] == [1, 2, 3]
    assert np.array_equal(frames[0].decode_thumbnail(), frames[2].decode_thumbnail())


def test_a_second_run_does_what_is_missing_or_changed_only(
    task: UnlabelledTask, folder: Path, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess_unlabelled(task, 1)
    made: list[Any] = []
    really = unlabelled_job._make_record
    monkeypatch.setattr(
        unlabelled_job, "_make_record", lambda *a: made.append(a[0].names[a[1]]) or really(*a)
    )
    assert preprocess_unlabelled(task, 1).kept == 4
    assert made == []
    record_file(task.folder, FRAMES[1]).unlink()
    os.utime(folder / "a" / "p1_again_0000.nii.gz")  # touched, not changed
    assert preprocess_unlabelled(task, 1).written == 1
    assert made == FRAMES[1:2]
    other = tiny_dataset.raw / "imagesTr" / "p4_f0_0000.nii.gz"
    shutil.copy(other, folder / "a" / "p1_again_0000.nii.gz")
    old = read_images(task.folder)[0]
    task = replace(task, choice=replace(task.choice, patient=r"(\w)/p"))
    done = preprocess_unlabelled(task, 1)
    assert (done.written, done.kept) == (1, 3)
    assert made[1:] == ["p1_again"]
    assert read_images(task.folder)[0].thumbnail != old.thumbnail
    assert [image.patient for image in read_images(task.folder)] == ["a", "b", "b", "b"]
    cine(folder / "b" / "p2_4d.nii.gz", [other] * 2)
    (folder / "a" / "p1_again_0000.nii.gz").unlink()
    assert preprocess_unlabelled(task, 1).gone == 1
    assert names(task) == ["p1_again", *FRAMES[:2]]


def test_records_are_read_from_one_file_while_they_stay_the_same(
    task: UnlabelledTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess_unlabelled(task, 1)
    before = read_records(task.folder)  # from files of their own, as older versions wrote them
    opened: list[str] = []
    really = records.read_json
    monkeypatch.setattr(records, "read_json", lambda f: opened.append(f.name) or really(f))
    assert read_records(task.folder) == before
    assert opened == [records.INDEX]
    records.write_image_record(task.folder, replace(before[1], patient="another"))
    record_file(task.folder, before[2].identifier).unlink()
    after = read_records(task.folder)
    assert [each.patient for each in after] == ["p1", "another", "p2"]
    assert opened[1:] == [records.INDEX, f"{before[1].identifier}.json"]
    for damaged in ("[]", "{", '{"p1_again.json": 1}', '{"p1_again.json": [1, 2]}'):
        (task.folder / records.INDEX).write_text(damaged)
        assert read_records(task.folder) == after


def test_killed_in_between_one_image_is_lost_at_most(
    task: UnlabelledTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frame that was being written when the process died is made again, no other."""
    really = unlabelled_job.write_image_record
    calls: list[str] = []

    def dies(pool: Path, image: Any) -> None:
        calls.append(image.identifier)
        if len(calls) == 3:
            raise KeyboardInterrupt
        really(pool, image)

    monkeypatch.setattr(unlabelled_job, "write_image_record", dies)
    with pytest.raises(KeyboardInterrupt):
        preprocess_unlabelled(task, 1)
    assert names(task) == ["p1_again", *FRAMES[:1]]
    done = preprocess_unlabelled(task, 1)
    assert (done.written, done.kept) == (2, 2)
    assert calls[2:] == FRAMES[1:2] + FRAMES[1:]


def test_parts_are_disjoint_and_together_all(task: UnlabelledTask) -> None:
    first = preprocess_unlabelled(replace(task, part=(1, 2)), 1)
    assert names(task) == ["p1_again"]
    second = preprocess_unlabelled(replace(task, part=(2, 2)), 1)
    assert (first.written, second.written, len(names(task))) == (1, 3, 4)
    sources = [ImageSource(f"x{k:02d}", "", "", ()) for k in range(13)]
    parts = [share(sources, (k, 3)) for k in (1, 2, 3)]
    together = [source.identifier for part in parts for source in part]
    assert sorted(together) == [source.identifier for source in sources]
    with pytest.raises(ValueError, match="found 3/2"):
        replace(task, part=(3, 2))


def broken(folder: Path, what: str) -> str:
    """Damages the folder; what the message must say."""
    image, video = folder / "a" / "p1_again_0000.nii.gz", folder / "b" / "p2_4d.nii.gz"
    if what == "truncated":
        image.write_bytes(image.read_bytes()[:9000])
        return r"a/p1_again_0000\.nii\.gz: (is truncated|cannot be read)"
    if what == "truncated cine":
        video.write_bytes(video.read_bytes()[:-9000])
        return r"b/p2_4d\.nii\.gz: (is truncated|cannot be read)"
    if what == "channels":
        shutil.copy(image, image.with_name("p1_again_0001.nii.gz"))
        return "has 2 channels, the plans have 1"
    if what == "twice":
        for name in ("a_b/p1.nii.gz", "a/b_p1.nii.gz", "a/b/p1.nii.gz"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(image, folder / name)
        return "a_b_p1: is there 2 times"
    if what == "frame twice":
        shutil.copy(image, folder / "a" / f"{FRAMES[1]}.nii.gz")
        return f"{FRAMES[1]}: is there twice"
    if what == "case":
        image.rename(folder / "a" / "p3_f1.nii.gz")
        return "identifier of a case of Dataset999_Tiny"
    if what == "patient":
        image.rename(folder / "a" / "nobody.nii.gz")
        return "has no patient by the pattern"
    array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(image)))
    array[2, 3, 4] = np.nan
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(image))
    return "not finite"


DAMAGES = (
    *("truncated", "truncated cine", "channels", "twice", "frame twice", "case", "patient"),
    "nan",
)


@pytest.mark.parametrize("what", DAMAGES)
def test_nothing_is_written_before_all_is_checked(
    task: UnlabelledTask, folder: Path, what: str
) -> None:
    message = broken(folder, what)
    with pytest.raises(ConversionError, match=message):
        preprocess_unlabelled(task, 1)
    assert not task.folder.exists()


def test_changed_plans_and_another_folder_are_refused(task: UnlabelledTask, tmp_path: Path) -> None:
    preprocess_unlabelled(replace(task, part=(1, 2)), 1)
    plans = json.loads(json.dumps(task.plan.plans))
    plans["configurations"]["2d"]["batch_size"] = 77  # changes no voxel
    preprocess_unlabelled(replace(task, plan=replace(task.plan, plans=plans), part=(1, 2)), 1)
    plans["configurations"]["2d"]["spacing"] = [2.0, 2.0]
    with pytest.raises(ValueError, match=r"plans that have changed.*--remove more"):
        preprocess_unlabelled(replace(task, plan=replace(task.plan, plans=plans)), 1)
    shutil.copytree(task.source, tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="another --name"):
        preprocess_unlabelled(replace(task, source=tmp_path / "elsewhere"), 1)


def test_the_command_lists_and_removes(
    task: UnlabelledTask, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["-d", "999", "-c", "2d"]
    main([*base, "-i", str(folder), "--files", "_4d", "--name", "cine", "-np", "1"])
    assert "3 images written, 0 were there, of 1 patients" in capsys.readouterr().out
    main([*base, "--list"])
    assert capsys.readouterr().out.startswith("cine: 3 images of 1 patients")
    assert read_manifest(find_collections(task.own)["cine"])["source"] == str(folder)
    main([*base, "--remove", "cine"])
    assert find_collections(task.own) == {}
    assert not list((task.own / "unlabelled").iterdir())
    for wrong, message in (
        (["--remove", "cine"], "no collection 'cine'"),
        ([], "needs -i"),
        (["-i", str(folder), "--patient", r"p\d"], "has no group"),
        (["-i", str(folder), "--part", "x"], "K/N"),
        (["-i", str(folder), "--files", "nothing"], "no image that matches"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*base, *wrong])


def test_removed_images_leave_no_companion_arrays(task: UnlabelledTask) -> None:
    preprocess_unlabelled(task, 1)
    maps = DataFolders(task.own.parents[1] / task.own.name, 0).dense_target("clusters")
    removed, other, of_cases = (
        dense_target_folder(maps, folder) / "image.b2nd"
        for folder in (task.folder, task.folder.with_name("other"), None)
    )
    for file in (removed, other, of_cases):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    remove_collection(task.own, task.name)
    found = [path.exists() for path in (removed.parent, task.folder, other, of_cases)]
    assert found == [False, False, True, True]


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_frames_are_read_one_by_one_whatever_the_format(tmp_path: Path, ending: str) -> None:
    array = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    image = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(each) for each in array])
    file = tmp_path / f"cine{ending}"
    SimpleITK.WriteImage(image, str(file))
    assert count_frames([file]) == 3
    for number, volume in read_frames([file], {1, 3}):
        volume.write(tmp_path / "frame.nii")
        written = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "frame.nii")))
        assert np.array_equal(written, array[number - 1])
    assert [number for number, _ in read_frames([file], {1, 3})] == [1, 3]


def test_other_formats_go_through_the_plans_reader(
    task: UnlabelledTask, folder: Path, tiny_dataset: Any, convert: Callable[[Path, Path], None]
) -> None:
    """A MetaImage with its voxels in a second file gives what the NIfTI file gives."""
    source = folder / "a" / "p1_again_0000.nii.gz"
    convert(source, source.with_name("p1_meta.mhd"))
    preprocess_unlabelled(replace(task, part=(1, 3)), 1)
    preprocess_unlabelled(replace(task, part=(2, 3)), 1)
    first, second = (open_image(task.folder / f"{n}.b2nd")[:] for n in ("p1_again", "p1_meta"))
    assert np.allclose(first, second, atol=1e-5)
    assert [Path(f.path).suffix for f in read_images(task.folder)[1].files] == [".mhd", ".raw"]


@pytest.fixture
def convert() -> Callable[[Path, Path], None]:
    return lambda a, b: SimpleITK.WriteImage(SimpleITK.ReadImage(str(a)), str(b))


def test_leftovers_of_a_dead_process_go_when_they_are_old(task: UnlabelledTask) -> None:
    task.folder.mkdir(parents=True)
    old, young = task.folder / ".part_old", task.folder / ".part_young"
    for left in (old, young):
        left.mkdir()
    os.utime(old, (0, 0))
    unlabelled._prepare(task)
    assert not old.exists()
    assert young.exists()


def test_what_folder_reads_is_read(task: UnlabelledTask, folder: Path) -> None:
    """Series without ending and of Siemens, and names that are not their own but by their path."""
    shutil.rmtree(folder / "b")
    voxels = np.random.default_rng(0).integers(0, 900, (6, 20, 20)).astype(np.int16)
    for name, stem in (("s1", "IM_{:04d}"), ("s2", "x.{:04d}.IMA"), ("s3", "1.2.840.{}")):
        dicom(folder / "c" / name, voxels, f"{name}_{{}}.dcm")
        for number, path in enumerate(sorted((folder / "c" / name).iterdir())):
            path.rename(path.with_name(stem.format(number)))
    (folder / "c" / "s1" / "LICENSE").write_text("no image")
    for where in ("d", "e"):
        (folder / where).mkdir()
        shutil.copy(folder / "a" / "p1_again_0000.nii.gz", folder / where / "T1_0000.nii.gz")
    preprocess_unlabelled(replace(task, choice=replace(task.choice, patient=None)), 1)
    assert names(task) == ["d_T1", "e_T1", "p1_again", "s1", "s2", "s3"]
    series = [open_image(task.folder / f"s{k}.b2nd")[:] for k in (1, 2, 3)]
    assert all(np.array_equal(series[0], each) for each in series)


@pytest.mark.parametrize(
    "step", [pytest.param(24, id="a sample"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
def test_damaged_images_are_refused_clearly_or_read_rightly(
    tiny_dataset: Any, step: int, tmp_path: Path
) -> None:
    plans = deepcopy(tiny_dataset.plans)
    plans["configurations"]["3d_fullres"]["spacing"] = [3.0, 1.25, 1.5]
    road = partial(
        preprocess_image, plan=PreprocessingPlan(plans, "3d_fullres", tiny_dataset.dataset_json)
    )
    damaged = make_damaged(tmp_path / "damaged")[5::step]
    damaged = [each for each in damaged if "four axes" not in each.name]  # here they are cines
    found = {each.name: judge(each, road, tmp_path / "work") for each in damaged}
    wrong = {name: what for name, what in found.items() if what not in (REFUSED, ACCEPTED)}
    assert wrong == {}
    assert set(found.values()) == {REFUSED, ACCEPTED}
