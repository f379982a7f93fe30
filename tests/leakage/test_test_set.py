"""imagesTs: no image of its patients is trained on, whatever it is called."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnssl.common.files import read_json, write_json
from nnssl.leakage import unlabelled as unlabelled
from tests.leakage.unlabelled_bench import KNOWN, add_cine, pretrainer

__all__ = ["add_cine", "pretrainer"]


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
    kept = [{s: [c for c in f[s] if c[:2] != "p3"] for s in f} for f in read_json(splits)]
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
