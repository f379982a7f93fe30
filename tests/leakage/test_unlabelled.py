"""Images without labels in a run: which are drawn, which are left out and why, what is recorded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnssl.cluster_maps.fold_maps import cluster_dataset
from nnssl.cluster_maps.recipe import ClusterRecipe
from nnssl.common.files import read_json, write_json
from nnssl.data.thumbnails import CELLS
from nnssl.data.unlabelled.job import PreprocessingPlan
from nnssl.data.unlabelled.preprocess import (
    UnlabelledTask,
    preprocess_unlabelled,
    remove_collection,
)
from nnssl.data.unlabelled.records import UnlabelledImage, encode_thumbnail
from nnssl.data.unlabelled.sources import FileChoice
from nnssl.leakage import unlabelled
from nnssl.leakage.check import Evaluation, check
from nnssl.leakage.seen import Seen
from nnssl.leakage.unlabelled import ChosenImage, ChosenImages
from nnssl.nnunet.images import open_image
from nnssl.nnunet.splits import read_splits
from nnssl.training import pretraining_loop
from nnssl.training.factory import trainer_class

PIXELS = """
extends: nnSSLPixelClusteringTrainer
training: {patch_size: [16, 16]}
objective: {clusters: 4}
"""
SHORT = """
extends: nnSSLContrastiveTrainer
training: {num_epochs: 1, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 0}
sampling: {partitions: 2, volumes: 3}
objective: {hidden_features: 16, embedding_features: 8}
probe: {probe_at_end: false}
"""
KNOWN = r"(p\d)_"


@pytest.fixture
def pretrainer(tiny_dataset: Any, trainer_yaml: Callable[[str, str], str]) -> Callable[..., Any]:
    """`pretrainer(fold=0)`: an initialised trainer."""
    trainer_yaml("nnSSLShort", SHORT)
    trainer_class.cache_clear()

    def make(fold: int | str = 0) -> Any:
        trainer = tiny_dataset.trainer(trainer_class("nnSSLShort"), fold=fold)
        trainer.initialize()
        return trainer

    return make


@pytest.fixture
def add_cine(tiny_dataset: Any, tmp_path: Path) -> Callable[..., Path]:
    """`add_cine(name, patient, pattern)`: preprocesses a cine of the patient's two frames."""

    def add(name: str, patient: str, pattern: str | None = None) -> Path:
        source = tmp_path / "cines" / name
        source.mkdir(parents=True, exist_ok=True)
        raw = tiny_dataset.raw / "imagesTr"
        first, *rest = (nibabel.load(raw / f"{patient}_f{k}_0000.nii.gz") for k in (0, 1))
        array = np.stack([each.get_fdata(dtype=np.float32) for each in (first, *rest)], 3)
        stem = f"{patient}_4d" if pattern else f"{name}{patient[1:]}"
        nibabel.save(nibabel.Nifti1Image(array, first.affine), source / f"{stem}.nii.gz")
        plan = PreprocessingPlan(tiny_dataset.plans, "2d", tiny_dataset.dataset_json)
        task = UnlabelledTask(
            tiny_dataset.preprocessed, source, name, plan, FileChoice((), None, pattern)
        )
        preprocess_unlabelled(task, 1)
        return task.folder

    return add


def batches(trainer: Any, count: int = 12) -> list[dict[str, Any]]:
    return [trainer.batch_maker(step) for step in range(count)]


def drawn(trainer: Any, count: int = 12) -> set[str]:
    return {name for batch in batches(trainer, count) for name in batch["identifier"]}


def same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    return all(
        torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key]
        for a, b in zip(first, second, strict=True)
        for key, value in a.items()
    )


@pytest.mark.parametrize(
    ("pattern", "why"), [(KNOWN, unlabelled.OF_VALIDATION), (None, unlabelled.COPIES)]
)
def test_the_cine_of_a_validation_patient_changes_no_batch(
    pretrainer: Callable[..., Any],
    add_cine: Callable[..., Path],
    pattern: str | None,
    why: str,
) -> None:
    """Fold 0 validates on p0. Its cine is recognised by its patient or, unnamed, by content."""
    before = batches(pretrainer())
    add_cine("stranger", "p0", pattern)
    trainer = pretrainer()
    assert same(before, batches(trainer))
    assert trainer.unlabelled.left_out == {why: 2}
    assert trainer.drawn_cases == trainer.train_cases


def test_images_of_training_patients_enter_batches(
    tiny_dataset: Any, pretrainer: Callable[..., Any], add_cine: Callable[..., Path]
) -> None:
    """As further images of the same patient; voxels are those of the pool; validation has none."""
    stock = tiny_dataset.preprocessed / "nnUNetPlans_2d"
    before = sorted(nnUNetDatasetBlosc2.get_identifiers(str(stock)))
    pool = add_cine("cine", "p1", KNOWN)
    trainer = pretrainer()
    frames = {"p1_4d_frame01", "p1_4d_frame02"}
    assert frames < drawn(trainer)
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(stock))) == before
    numbers = {case.identifier: (case.patient, case.dataset) for case in trainer.drawn_cases}
    assert numbers["p1_4d_frame01"] == numbers["p1_f0"] != numbers["p2_f0"]
    for batch in batches(trainer):
        for image, box, name in zip(batch["image"], batch["box"], batch["identifier"], strict=True):
            if name in frames:
                check_voxels(image, box, open_image(pool / f"{name}.b2nd")[:])
    loader = trainer._make_validation_loader(0)
    assert set(next(loader)["identifier"]) == {"p0_f0", "p0_f1"}
    loader.close()
    assert (pool / "occupancy" / "p1_4d_frame01.npz").is_file()
    assert len(trainer.drawn_cases) == 10


def check_voxels(image: torch.Tensor, box: torch.Tensor, whole: np.ndarray) -> None:
    padded = np.pad(whole, [(0, 0), (0, 0), (30, 30), (30, 30)])
    z, (y, y_end), (x, x_end) = int(box[0, 0]), *(box[1:].int() + 30).tolist()
    assert np.array_equal(image.numpy(), padded[:, z, y:y_end, x:x_end])


def test_unknown_patients_are_of_a_dataset_of_their_own(
    pretrainer: Callable[..., Any], add_cine: Callable[..., Path]
) -> None:
    add_cine("strangers", "p1")
    add_cine("strangers", "p2")
    cases = pretrainer().drawn_cases
    known = {case.patient for case in cases if case.folder is None}
    ours = {case.identifier: case.patient for case in cases if case.folder is not None}
    assert len(ours) == 4
    assert len(set(ours.values())) == 2
    assert known.isdisjoint(ours.values())
    assert [case.dataset for case in cases] == [0] * 8 + [1] * 4


def test_all_images_of_an_unknown_patient_go_when_one_is_caught(
    pretrainer: Callable[..., Any], add_cine: Callable[..., Path]
) -> None:
    pool = add_cine("stranger", "p0")
    record = pool / "records" / "stranger0_frame02.json"
    content = read_json(record)
    content["thumbnail"] = encode_thumbnail(np.zeros(np.prod(CELLS)))  # resembles nothing
    write_json(record, content)
    assert pretrainer().unlabelled.left_out == {unlabelled.COPIES: 2}


def test_a_resumed_run_keeps_the_images_that_it_began_with(
    pretrainer: Callable[..., Any], add_cine: Callable[..., Path], tiny_dataset: Any
) -> None:
    pool = add_cine("cine", "p1", KNOWN)
    trainer = pretrainer()
    checkpoint = trainer.compose_checkpoint()
    before = batches(trainer)
    add_cine("cine", "p2", KNOWN)
    add_cine("stranger", "p4")
    assert len(pretrainer().unlabelled.members) == 6
    resumed = tiny_dataset.trainer(trainer_class("nnSSLShort"))
    resumed.load_checkpoint(checkpoint)
    assert same(before, batches(resumed))
    assert resumed.compose_checkpoint()["nnssl"]["cases"] == checkpoint["nnssl"]["cases"]
    record = pool / "records" / "p1_4d_frame02.json"
    content = read_json(record)
    write_json(record, {**content, "voxels": "other"})
    with pytest.raises(ValueError, match=r"1 are gone or have changed.*cine/p1_4d_frame02"):
        tiny_dataset.trainer(trainer_class("nnSSLShort")).load_checkpoint(checkpoint)
    remove_collection(pool.parent.parent, "cine")
    lost = tiny_dataset.trainer(trainer_class("nnSSLShort"))
    with pytest.raises(ValueError, match=r"2 are gone or have changed.*cine/p1_4d_frame01"):
        lost.load_checkpoint(checkpoint)


def test_a_run_of_an_older_version_goes_on_without(
    pretrainer: Callable[..., Any], add_cine: Callable[..., Path], tiny_dataset: Any
) -> None:
    checkpoint = pretrainer().compose_checkpoint()
    before = batches(pretrainer())
    del checkpoint["nnssl"]["cases"]["unlabelled"]
    del checkpoint["nnssl"]["config"]["sections"]["sampling"]["unlabelled"]
    add_cine("cine", "p1", KNOWN)
    resumed = tiny_dataset.trainer(trainer_class("nnSSLShort"))
    resumed.load_checkpoint(checkpoint)
    assert same(before, batches(resumed))


def test_the_knob_takes_all_none_or_some(
    pretrainer: Callable[..., Any], add_cine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_cine("one", "p1", KNOWN)
    add_cine("two", "p2", KNOWN)
    for value, names in (("true", {"one", "two"}), ("false", set()), ("[two]", {"two"})):
        monkeypatch.setenv("nnssl_overrides", f"sampling.unlabelled={value}")
        assert {member.collection for member in pretrainer().unlabelled.members} == names
    monkeypatch.setenv("nnssl_overrides", "sampling.unlabelled=[three]")
    with pytest.raises(ValueError, match=r"no images \['three'\].*one, two"):
        pretrainer()


def test_other_plans_are_refused(
    tiny_dataset: Any, pretrainer: Callable[..., Any], add_cine: Callable[..., Path]
) -> None:
    add_cine("cine", "p1", KNOWN)
    tiny_dataset.plans["configurations"]["2d"]["spacing"] = [2.0, 2.0]
    with pytest.raises(ValueError, match=r"other plans.*--remove cine"):
        pretrainer()


def test_runs_with_companion_arrays_draw_them_with_theirs(
    tiny_dataset: Any, add_cine: Callable[..., Path], trainer_yaml: Callable[[str, str], str]
) -> None:
    """Clusters come with the voxels; without maps, or with older ones, the run does not begin."""
    trainer_yaml("nnSSLPixels", PIXELS)
    trainer = tiny_dataset.trainer(trainer_class("nnSSLPixels"))
    folder = make_maps(tiny_dataset)
    pool = add_cine("cine", "p1", KNOWN)
    trainer.initialize()
    frames = {"p1_4d_frame01", "p1_4d_frame02"}
    with pytest.raises(ValueError, match=r"2 images have no map, for instance p1_4d_frame01.*-f 0"):
        trainer.check_dense_targets()
    assert make_maps(tiny_dataset) == folder
    assert {file.stem for file in (folder / "unlabelled" / "cine").glob("*.b2nd")} == frames
    trainer.check_dense_targets()
    seen = set()
    for batch in batches(trainer):
        maps = batch["dense_targets"]["clusters"]
        for found, box, name in zip(maps, batch["box"], batch["identifier"], strict=True):
            if name in frames:
                file = folder / "unlabelled" / "cine" / f"{name}.b2nd"
                check_voxels(found[None] + 1, box, open_image(file, "iu")[:] + 1)  # padded by -1
                seen.add(name)
    assert seen == frames
    image, made = pool / "p1_4d_frame01.b2nd", folder / "unlabelled" / "cine"
    os.utime(image, ns=(0, (made / image.name).stat().st_mtime_ns + 1))
    with pytest.raises(ValueError, match="1 images have no map, for instance p1_4d_frame01"):
        trainer.check_dense_targets()
    make_maps(tiny_dataset)
    trainer.check_dense_targets()


def make_maps(dataset: Any) -> Path:
    """Folder of the cluster maps of fold 0."""
    recipe = ClusterRecipe(clusters=4, samples=4000, scales=(1.0,))
    root = dataset.preprocessed.parent
    return cluster_dataset(root, 999, "2d", "nnUNetPlans", recipe, "clusters", 1)[0]


def test_the_log_says_what_is_used_and_left_out(
    pretrainer: Callable[..., Any], add_cine: Callable[..., Path]
) -> None:
    add_cine("cine", "p0", KNOWN)
    add_cine("cine", "p1", KNOWN)
    trainer = pretrainer()
    log = Path(trainer.log_file).read_text()
    assert (
        "2 images without labels of 1 patients (cine); "
        f"left out: 2 ({unlabelled.OF_VALIDATION})" in log
    )


@pytest.mark.parametrize("signed", [False, True], ids=["images at hand", "signatures"])
def test_the_contamination_check_sees_them(
    tiny_dataset: Any, pretrainer: Callable[..., Any], add_cine: Callable[..., Path], signed: bool
) -> None:
    """p0 and p1 validate folds 0 and 1; fold 0 trained on cines of p1 and, unnamed, of p2."""
    add_cine("cine", "p1", KNOWN)
    pool = add_cine("stranger", "p2")
    trainer = pretrainer()
    if signed:
        trainer._record_seen()
    own = trainer.compose_checkpoint()["nnssl"]
    if signed:
        kept = [own["cases"]["train"].index("p3_f0"), *range(-4, 0)]
        own["cases"]["signatures"] = own["cases"]["signatures"][kept]
        del own["cases"]["records"]
    own["cases"]["train"] = ["p3_f0"]

    def found(validation: list[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
        dataset = tiny_dataset.preprocessed
        evaluation = Evaluation(dataset, 0, validation, dataset / "nnUNetPlans_2d")
        result = check(Seen.of(own, dataset.parent), evaluation, "all")
        return {f.text.split(" ")[0] + f.by: (f.verdict, f.cases) for f in result.findings}

    assert {verdict for verdict, _ in found(["p0_f0", "p4_f0"]).values()} == {"clean"}
    leaks = [cases for verdict, cases in found(["p1_f0"]).values() if verdict == "contaminated"]
    assert leaks == [("p1_f0",)] * 2  # by patient and by content
    leaks = [cases for verdict, cases in found(["p2_f1"]).values() if verdict == "contaminated"]
    assert leaks == [("p2_f1",)]
    shutil.rmtree(pool)
    unknown = "unknown" in {verdict for verdict, _ in found(["p0_f0"]).values()}
    assert unknown is not signed


def test_a_run_trains_on_them_and_says_so_in_its_checkpoint(
    pretrainer: Callable[..., Any],
    add_cine: Callable[..., Path],
    tiny_dataset: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pretraining_loop, "draw_progress", lambda *_: None)
    monkeypatch.setattr(pretraining_loop, "save_pictures", lambda *_: None)
    add_cine("cine", "p1", KNOWN)
    trainer = pretrainer()
    trainer.run_training()
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    own = torch.load(file, weights_only=True)["nnssl"]
    assert own["cases"]["unlabelled"]["images"]["cine"]["identifiers"] == [
        "p1_4d_frame01", "p1_4d_frame02",
    ]  # fmt: skip
    resumed = tiny_dataset.trainer(trainer_class("nnSSLShort"))
    resumed.load_checkpoint(str(file))
    assert resumed.unlabelled == trainer.unlabelled


@pytest.fixture
def raw_test_set(tiny_dataset: Any) -> Path:
    """p3 becomes the only patient of imagesTs, under the name t3."""
    folder = tiny_dataset.raw / "imagesTs"
    folder.mkdir()
    for k in (0, 1):
        shutil.move(tiny_dataset.raw / "imagesTr" / f"p3_f{k}_0000.nii.gz", folder)
        (folder / f"p3_f{k}_0000.nii.gz").rename(folder / f"t3_f{k}_0000.nii.gz")
        for file in (tiny_dataset.preprocessed / "nnUNetPlans_2d").glob(f"p3_f{k}*"):
            file.unlink()
    return folder


def as_before(folder: Path, tiny_dataset: Any) -> None:
    """Put the raw images of p3 where `add_cine` looks for them."""
    for k in (0, 1):
        target = tiny_dataset.raw / "imagesTr" / f"p3_f{k}_0000.nii.gz"
        shutil.copy(folder / f"t3_f{k}_0000.nii.gz", target)


def without_p3(tiny_dataset: Any, name: str, patient: str) -> None:
    file = tiny_dataset.preprocessed / "nnssl" / "cases.json"
    content = read_json(file)
    for k in (0, 1):
        del content["cases"][f"p3_f{k}"]
        entry = {"patient": patient, "dataset": "Tiny", "part": "Ts"}
        content["cases"][f"{name}_f{k}"] = entry
    write_json(file, content)
    splits = tiny_dataset.preprocessed / "splits_final.json"
    kept = [{s: [c for c in f[s] if c[:2] != "p3"] for s in f} for f in read_splits(splits)]
    write_json(splits, kept)


def test_test_images_are_left_out_by_patient_and_by_content_with_fold_all_too(
    tiny_dataset: Any,
    pretrainer: Callable[..., Any],
    add_cine: Callable[..., Path],
    raw_test_set: Path,
) -> None:
    """Fold all holds back no training case, but imagesTs."""
    without_p3(tiny_dataset, "t3", "p3")
    as_before(raw_test_set, tiny_dataset)
    add_cine("known", "p3", KNOWN)
    add_cine("stranger", "p3")
    add_cine("cine", "p0", KNOWN)
    trainer = pretrainer("all")
    assert trainer.unlabelled.left_out == {unlabelled.OF_TEST: 2, unlabelled.COPIES: 2}
    assert {m.image.identifier for m in trainer.unlabelled.members} == {
        "p0_4d_frame01", "p0_4d_frame02",
    }  # fmt: skip
    shutil.rmtree(raw_test_set)  # a training node without raw data: known from before
    assert pretrainer("all").unlabelled == trainer.unlabelled
    for cache in (trainer.folders.own).glob("thumbnails_imagesTs_*"):
        cache.unlink()
    assert pretrainer("all").unlabelled.left_out[unlabelled.NOT_COMPARED] == 2


def test_time_grows_with_the_number_of_images(tmp_path: Path) -> None:
    """Eight times as many images take eight times as long, not 64; numbers follow in turn."""
    entries = ("", (), None, 1, 1, (1, 1, 1), (1.0,), (1.0, 0, 0, 0, 1, 0, 0, 0, 1), "LPS", "", "")

    def seconds(count: int) -> float:
        images = [UnlabelledImage(f"i{k}", f"p{k}", *entries) for k in range(count)]
        chosen = ChosenImages(tuple(ChosenImage(tmp_path, image, "more") for image in images))
        start = process_time()
        cases = chosen.make_cases([], tmp_path, (0, 1, 2), "head_feet")
        assert [case.patient for case in cases] == list(range(count))
        return process_time() - start

    assert min(seconds(4000) for _ in range(2)) < 24 * min(seconds(500) for _ in range(3))
