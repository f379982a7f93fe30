"""What the loader delivers: the right voxels, nothing of a label, and errors with a name."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch

from nnssl.data.budget import Budget
from nnssl.data.case_table import (
    DataFolders,
    describe_axes,
    find_anatomical_axis,
    parse_orientation,
    read_case_table,
)
from nnssl.data.pretraining_batches import (
    BatchMaker,
    RawPatchReader,
    make_training_batches,
    make_validation_batches,
)
from nnssl.data.sampling import Sampling
from nnssl.data.stepped_loader import SteppedLoader
from nnssl.data.tissue_share import CELL, MOST_KEPT, TissueShare, measure_cells
from nnssl.nnunet.images import CaseError, image_file

HEAD_FIRST = [1, 0, 0, 0, 1, 0, 0, 0, 1]
SAGITTAL = [0, 0, 1, 1, 0, 0, 0, -1, 0]  # image axis y points to the feet


def maker(dataset: Any, configuration: str = "2d", **knobs: Any) -> BatchMaker:
    """Batches of all cases of the tiny dataset."""
    folder = dataset.preprocessed / f"nnUNetPlans_{configuration}"
    folders = DataFolders(folder, 0)
    cases = read_case_table(folder, identifiers(folder), [0, 1, 2], "head_feet")
    patch_size, raw_patch = (
        ((16, 16), (20, 20)) if configuration == "2d" else ((4, 16, 16), (6, 20, 20))
    )
    sampling = Sampling(**{"mode": "partitioned", "partitions": 2, **knobs})
    budget = Budget(patch_size, raw_patch, 4, views=1, planned=0)
    return make_training_batches(cases, folders, (), budget, sampling, seed=3, rank=0)


def identifiers(folder: Path) -> list[str]:
    return [f.stem for f in folder.glob("*.b2nd") if not f.stem.endswith("_seg")]


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return (
        all(
            torch.equal(first[key], second[key]) if isinstance(first[key], torch.Tensor) else True
            for key in first
        )
        and first["identifier"] == second["identifier"]
    )


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_patches_are_the_voxels_of_their_boxes(tiny_dataset: Any, configuration: str) -> None:
    batch = maker(tiny_dataset, configuration)(0)
    folder = tiny_dataset.preprocessed / f"nnUNetPlans_{configuration}"
    for image, box, name in zip(batch["image"], batch["box"], batch["identifier"], strict=True):
        whole = np.asarray(blosc2.open(str(folder / f"{name}.b2nd"))[:])
        padded = np.pad(whole, [(0, 0), (9, 9), (9, 9), (9, 9)])
        index = tuple(slice(int(a) + 9, int(b) + 9) for a, b in box)
        expected = padded[(slice(None), *index)].squeeze(1 if configuration == "2d" else ())
        assert np.array_equal(image.numpy(), expected)


def test_changing_the_labels_changes_no_batch(tiny_dataset: Any) -> None:
    """Neither the segmentation nor nnU-Net's stored class locations steer the patches."""
    before = [maker(tiny_dataset)(step) for step in range(3)]
    folder = tiny_dataset.preprocessed / "nnUNetPlans_2d"
    for file in folder.glob("*_seg.b2nd"):
        shape = blosc2.open(str(file)).shape
        file.unlink()
        blosc2.asarray(np.full(shape, 1, np.int8), urlpath=str(file))
    for file in folder.glob("*.pkl"):
        properties = pickle.loads(file.read_bytes())
        properties["class_locations"] = {1: np.zeros((5, 4), int), 2: np.zeros((5, 4), int)}
        file.write_bytes(pickle.dumps(properties))
    shutil.rmtree(folder.parent / "nnssl" / "nnUNetPlans_2d")
    after = [maker(tiny_dataset)(step) for step in range(3)]
    assert all(equal(a, b) for a, b in zip(before, after, strict=True))


def test_number_of_workers_changes_nothing(tiny_dataset: Any) -> None:
    make = maker(tiny_dataset)
    alone = [make(step) for step in range(2, 6)]
    loader = SteppedLoader(make, 2, workers=2, pin_memory=False)
    assert all(equal(batch, next(loader)) for batch in alone)
    loader.close()


def test_a_maker_that_has_read_travels_to_a_spawned_process(tiny_dataset: Any) -> None:
    make = maker(tiny_dataset)
    batch = make(0)
    assert equal(pickle.loads(pickle.dumps(make))(0), batch)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_an_unreadable_case_stops_the_run_with_its_name(tiny_dataset: Any, damage: str) -> None:
    make = maker(tiny_dataset)
    make(0)  # tissue is known by now, so that only the patch itself is read
    make = maker(tiny_dataset)
    victim = image_file(tiny_dataset.preprocessed / "nnUNetPlans_2d", make(0)["identifier"][0])
    content = victim.read_bytes()
    make = maker(tiny_dataset)
    victim.write_bytes(content[: len(content) // 3]) if damage == "cut" else victim.unlink()
    loader = SteppedLoader(make, 0, workers=1, pin_memory=False)
    with pytest.raises(RuntimeError, match=victim.stem):
        next(loader)


def test_dense_targets_are_cut_by_the_same_box_and_padded_with_minus_one(tiny_dataset: Any) -> None:
    folder = tiny_dataset.preprocessed / "nnUNetPlans_2d"
    clusters = folder.parent / "nnssl" / folder.name / "clusters" / "fold_0"
    clusters.mkdir(parents=True)
    for name in identifiers(folder):
        image = np.asarray(blosc2.open(str(folder / f"{name}.b2nd"))[:])
        blosc2.asarray((image * 100).astype(np.int32), urlpath=str(clusters / f"{name}.b2nd"))
    plain = maker(tiny_dataset)
    reader = RawPatchReader(folder, DataFolders(folder, 0).find_dense_targets(["clusters"]))
    make = BatchMaker(plain.sampler, reader, (48, 48), 3)
    batch = make(0)
    dense_target, image = batch["dense_targets"]["clusters"], batch["image"][:, 0]
    outside = dense_target == -1
    assert dense_target.dtype == torch.int64
    assert outside.any()
    assert not outside.all()
    assert torch.equal(dense_target[~outside], (image * 100).int().long()[~outside])
    assert (image[outside].abs() < 0.02).all()


def test_missing_dense_targets_are_named(tiny_dataset: Any) -> None:
    folders = DataFolders(tiny_dataset.preprocessed / "nnUNetPlans_2d", 0)
    with pytest.raises(ValueError, match="clusters"):
        folders.find_dense_targets(["clusters"])


def test_validation_repeats_the_same_batches_with_fewer_volumes(tiny_dataset: Any) -> None:
    make = maker(tiny_dataset)
    validation = make_validation_batches(make, make.sampler.cases[:1], 3)
    assert validation is not None
    assert len(validation(0)["image"]) == 2
    assert equal(validation(1), validation(4))
    assert not equal(validation(0), validation(1))


def test_nothing_of_ours_is_written_into_the_preprocessed_folder(tiny_dataset: Any) -> None:
    folder = tiny_dataset.preprocessed / "nnUNetPlans_2d"
    before = sorted(folder.iterdir())
    maker(tiny_dataset)(0)
    assert sorted(folder.iterdir()) == before
    assert (folder.parent / "nnssl" / folder.name / "occupancy").is_dir()


def test_tissue_is_found_anew_when_the_image_changed(tiny_dataset: Any, tmp_path: Path) -> None:
    folder = tiny_dataset.preprocessed / "nnUNetPlans_2d"
    name = identifiers(folder)[0]
    box = np.array([[0, 8], [0, 40], [0, 40]])
    first = TissueShare(folder, tmp_path / "cache").find_share(name, box)
    file = image_file(folder, name)
    shape = blosc2.open(str(file)).shape
    file.unlink()
    blosc2.asarray(np.zeros(shape, np.float32), urlpath=str(file))
    assert 0 < first < 1
    assert TissueShare(folder, tmp_path / "cache").find_share(name, box) == 1.0


def test_tissue_of_a_large_volume_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """163,840 cells: a running sum in float16 would be infinite, and their difference no number."""
    cells = np.ones((40, 64, 64), np.float16)
    monkeypatch.setattr(TissueShare, "_load", lambda *_: cells)
    tissue = TissueShare(tmp_path, tmp_path)
    assert tissue.find_share("large", np.array([[30, 40], [256, 512], [256, 512]])) == 1.0


def test_few_tables_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand cases would fill the memory of every worker."""
    monkeypatch.setattr(TissueShare, "_load", lambda *_: np.ones((2, 2, 2), np.float16))
    tissue = TissueShare(tmp_path, tmp_path)
    box = np.array([[0, 1], [0, 8], [0, 8]])
    assert {tissue.find_share(f"case{i}", box) for i in range(200)} == {1.0}
    assert len(tissue._tables) <= MOST_KEPT


def test_a_damaged_cache_is_made_anew(tiny_dataset: Any, tmp_path: Path) -> None:
    folder = tiny_dataset.preprocessed / "nnUNetPlans_2d"
    name = identifiers(folder)[0]
    box = np.array([[0, 8], [0, 40], [0, 40]])
    share = TissueShare(folder, tmp_path).find_share(name, box)
    cached = tmp_path / f"{name}.npz"
    cached.write_bytes(cached.read_bytes()[:-30])
    assert TissueShare(folder, tmp_path).find_share(name, box) == share


def test_tissue_cells_count_bright_voxels() -> None:
    image = np.zeros((2, 16, 12), np.float32)
    image[1, :8, :8] = 5
    cells = measure_cells(image)
    assert cells.shape == (2, 2, 2)
    assert cells[1, 0, 0] == 1
    assert cells.sum() == 1
    assert CELL == 8


def test_share_of_a_box_outside_the_volume_is_air(tiny_dataset: Any, tmp_path: Path) -> None:
    folder = tiny_dataset.preprocessed / "nnUNetPlans_2d"
    tissue = TissueShare(folder, tmp_path)
    name = identifiers(folder)[0]
    assert tissue.find_share(name, np.array([[0, 8], [-40, 0], [0, 40]])) == 0
    inside = tissue.find_share(name, np.array([[0, 8], [0, 40], [0, 40]]))
    half = tissue.find_share(name, np.array([[0, 8], [-40, 40], [0, 40]]))
    assert half == pytest.approx(inside / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("direction", "transpose", "knob", "expected"),
    [
        (HEAD_FIRST, [0, 1, 2], "head_feet", (0, 1)),
        (HEAD_FIRST, [2, 0, 1], "head_feet", (1, 1)),
        (SAGITTAL, [0, 1, 2], "head_feet", (1, -1)),
        (SAGITTAL, [0, 1, 2], "slice", (0, 1)),
        (SAGITTAL, [0, 1, 2], 1, (1, -1)),
    ],
)
def test_position_follows_the_head(
    direction: list[float], transpose: list[int], knob: Any, expected: tuple[int, int]
) -> None:
    assert find_anatomical_axis(direction, transpose, knob) == expected


def test_orientations_are_described(tiny_dataset: Any) -> None:
    assert "array axis 0 (towards the head): 10 cases" in describe_axes(
        maker(tiny_dataset).sampler.cases
    )


def record_orientation(dataset: Any, letters: str) -> None:
    """Every case gets the orientation, as the converter records it."""
    records = dataset.preprocessed / "nnssl" / "cases.json"
    content = json.loads(records.read_text())
    for entry in content["cases"].values():
        entry["orientation"] = letters
    records.write_text(json.dumps(content))


def test_a_recorded_orientation_needs_no_properties(tiny_dataset: Any) -> None:
    """The properties hold class locations, made from labels; they stay closed."""
    record_orientation(tiny_dataset, "LPI")
    for file in (tiny_dataset.preprocessed / "nnUNetPlans_2d").glob("*.pkl"):
        file.unlink()
    assert {(c.axis, c.sign) for c in maker(tiny_dataset).sampler.cases} == {(0, -1)}


def test_a_reader_that_reorients_makes_the_record_useless(tiny_dataset: Any) -> None:
    record_orientation(tiny_dataset, "LPI")
    folder = tiny_dataset.preprocessed / "nnUNetPlans_2d"
    arguments = folder, identifiers(folder), [0, 1, 2], "head_feet"
    assert {case.sign for case in read_case_table(*arguments, "NibabelIOWithReorient")} == {1}


def test_directions_of_letters() -> None:
    assert parse_orientation("LPS") == HEAD_FIRST
    assert parse_orientation("PIL") == SAGITTAL
    for wrong in ("LPX", "LP", "LLS"):
        with pytest.raises(ValueError, match=f"found '{wrong}'"):
            parse_orientation(wrong)


def test_a_case_without_an_image_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="nnUNetv2_preprocess"):
        image_file(tmp_path, "gone")


def test_a_case_with_values_that_are_not_finite_is_named(tiny_dataset: Any) -> None:
    """In the patch that is read, and where tissue is looked for."""
    folder = tiny_dataset.preprocessed / "nnUNetPlans_2d"
    file = image_file(folder, "p0_f0")
    voxels = blosc2.open(str(file))[:]
    voxels[0, 2, 3, 4:6] = np.nan
    file.unlink()
    blosc2.asarray(voxels, urlpath=str(file))
    whole = np.array([[0, n] for n in voxels.shape[1:]])
    with pytest.raises(CaseError, match="case p0_f0: 2 preprocessed voxels are not finite"):
        RawPatchReader(folder).read_image("p0_f0", whole)
    with pytest.raises(CaseError, match="case p0_f0: 2 preprocessed voxels are not finite"):
        TissueShare(folder, tiny_dataset.preprocessed / "cache").find_share("p0_f0", whole)
