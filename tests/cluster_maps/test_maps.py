"""Cluster maps on the disk: made once, resumed, rebuilt when they must be, read by a real run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from threading import Thread
from typing import Any

import blosc2
import numpy as np
import pytest
import torch

from nnssl.cluster_maps import maps
from nnssl.cluster_maps.fold_maps import cluster_dataset, list_fold_cases
from nnssl.cluster_maps.recipe import ClusterRecipe, read_manifest
from nnssl.common.locks import hold
from nnssl.data.case_table import DataFolders
from nnssl.data.pretraining_batches import RawPatchReader
from nnssl.data.tissue_share import CACHE, TissueShare
from nnssl.training.factory import trainer_class

RECIPE = ClusterRecipe(clusters=4, samples=4000, scales=(1.0,), position=0.5)
CASES = 10
SHORT = """
extends: nnSSLPixelClusteringTrainer
training: {num_epochs: 1, num_iterations_per_epoch: 3, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 0, picture_every: 1}
objective: {clusters: 4}
"""


def make(dataset: Any, recipe: ClusterRecipe = RECIPE, overwrite: bool = True) -> Path:
    """Folder of the maps."""
    arguments = (999, "2d", "nnUNetPlans", recipe, "clusters", 1, overwrite)
    return cluster_dataset(dataset.preprocessed.parent, *arguments)[0]


def times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.b2nd")}


def test_maps_are_made_once_resumed_and_rebuilt(tiny_dataset: Any) -> None:
    folder = make(tiny_dataset)
    first = times(folder)
    assert len(first) == CASES
    assert folder == tiny_dataset.preprocessed / "nnssl" / "nnUNetPlans_2d" / "clusters/fold_0"
    assert sum(read_manifest(folder)["shares"]) == pytest.approx(1)
    (folder / "p1_f0.b2nd").unlink()
    make(tiny_dataset)
    again = times(folder)
    assert {name for name in first if again[name] != first[name]} == {"p1_f0.b2nd"}
    with pytest.raises(ValueError, match=r"holds maps made with \{'clusters': 4.*--overwrite"):
        make(tiny_dataset, OTHER, overwrite=False)
    assert times(folder) == again
    make(tiny_dataset, OTHER)
    rebuilt = times(folder)
    assert all(rebuilt[name] != again[name] for name in first)
    assert len(read_manifest(folder)["shares"]) == 3


OTHER = ClusterRecipe(clusters=3, samples=4000, scales=(1.0,))


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("step", ["_fit", "_assign", "_count"])
def test_good_maps_stay_until_others_are_whole(tiny_dataset: Any, monkeypatch: Any, step: str):
    folder = make(tiny_dataset)
    before = contents(folder)

    def fail(*_: Any) -> None:
        raise ValueError("an unreadable checkpoint")

    with monkeypatch.context() as broken:
        broken.setattr(maps, step, fail)
        broken.setattr(maps, "for_each", lambda f, items, *_: [f(item) for item in items])
        with pytest.raises(ValueError, match="an unreadable checkpoint"):
            make(tiny_dataset, OTHER)
    assert contents(folder) == before
    make(tiny_dataset, OTHER)
    assert len(read_manifest(folder)["shares"]) == 3
    assert sorted(path.name for path in folder.parent.iterdir()) == ["fold_0", "locks"]


def test_a_run_that_was_killed_between_two_folders_goes_on(tiny_dataset: Any):
    folder = make(tiny_dataset, OTHER)
    made = times(folder)
    folder.rename(folder.with_name(".fold_0_new"))
    assert times(make(tiny_dataset, OTHER)) == made


@pytest.mark.parametrize(
    "name", ["../other", "/elsewhere/other", "a/b", "", ".", "..", "unlabelled"]
)
def test_a_name_never_leads_to_something_else(tiny_dataset: Any, name: str):
    before = contents(tiny_dataset.preprocessed)
    arguments = (999, "2d", "nnUNetPlans", RECIPE, name, 1)
    with pytest.raises(ValueError, match=r"--name: "):
        cluster_dataset(tiny_dataset.preprocessed.parent, *arguments)
    assert contents(tiny_dataset.preprocessed) == before


def test_a_folder_of_something_else_is_left_alone(tiny_dataset: Any):
    folder = tiny_dataset.preprocessed / "nnssl" / "nnUNetPlans_2d" / "clusters/fold_0"
    folder.mkdir(parents=True)
    (folder / "checkpoint_final.pth").write_bytes(b"weights")
    with pytest.raises(ValueError, match="holds something else than cluster maps"):
        make(tiny_dataset)
    assert contents(folder) == {"checkpoint_final.pth": b"weights"}


def test_maps_are_dense_targets_of_the_images(tiny_dataset: Any) -> None:
    folder = make(tiny_dataset)
    images = tiny_dataset.preprocessed / "nnUNetPlans_2d"
    reader = RawPatchReader(images, {"clusters": folder})
    shape = blosc2.open(str(images / "p0_f0.b2nd")).shape[1:]
    box = np.array([[-1, shape[0]], [-2, shape[1]], [0, shape[2]]])
    found = reader.read_dense_target("clusters", "p0_f0", box)
    assert found.shape == (shape[0] + 1, shape[1] + 2, shape[2])
    assert (found[0] == -1).all()
    assert (found[:, :2] == -1).all()
    assert set(np.unique(found)) <= {-1, 0, 1, 2, 3}
    brightness = np.asarray(blosc2.open(str(images / "p0_f0.b2nd"))[0])
    inner = found[1:, 2:]
    means = [brightness[inner == k].mean() for k in range(4) if (inner == k).any()]
    assert means[-1] > means[0] + 0.5


def test_the_nearest_centre_is_the_nearest_whatever_its_length() -> None:
    random = np.random.default_rng(0)
    points = random.normal(size=(50, 3))
    centres = random.normal(size=(6, 3)) * np.array([[0.1], [1], [1], [2], [3], [9]])
    distances = np.linalg.norm(points[:, None] - centres, axis=2)
    assert np.array_equal(maps.find_nearest(points, centres), distances.argmin(1))
    assert len(set(distances.argmin(1))) > 3


def test_k_means_never_sees_a_validation_case(tiny_dataset: Any, monkeypatch: Any) -> None:
    read: list[str] = []
    sample = maps._sample
    monkeypatch.setattr(
        maps, "_sample", lambda job, n, case: [read.append(case), sample(job, n, case)]
    )
    monkeypatch.setattr(maps, "for_each", lambda f, items, *_: [f(item) for item in items])
    make(tiny_dataset)
    training, cases = list_fold_cases(tiny_dataset.preprocessed / "nnUNetPlans_2d", 0)
    assert sorted(read) == training
    assert set(cases) - set(training) == {"p0_f0", "p0_f1"}
    assert len(list_fold_cases(tiny_dataset.preprocessed / "nnUNetPlans_2d", "all")[0]) == CASES


def test_our_own_encoder_gives_features(tiny_dataset: Any, tmp_path: Path) -> None:
    kind = trainer_class("nnSSLClusteringTrainer")
    trainer = tiny_dataset.trainer(kind)
    trainer.initialize()
    own = {
        "kind": "pretrain",
        "plans": tiny_dataset.plans,
        "configuration": "2d",
        "input_channels": 1,
    }
    file = tmp_path / "weights.pth"
    weights = trainer.objective.network.state_dict()
    torch.save({"network_weights": weights, "nnssl": own}, file)
    recipe = ClusterRecipe("self", clusters=3, samples=2000, checkpoint=str(file), stage=1)
    folder = make(tiny_dataset, recipe)
    assert len(times(folder)) == CASES
    assert sum(share > 0 for share in read_manifest(folder)["shares"]) == 3


def test_a_run_refuses_maps_that_do_not_fit_and_takes_those_that_do(
    tiny_dataset: Any, trainer_yaml: Callable[[str, str], str]
) -> None:
    trainer_yaml("nnSSLShortPixels", SHORT)
    trainer_class.cache_clear()
    kind = trainer_class("nnSSLShortPixels")
    trainer = tiny_dataset.trainer(kind)
    trainer.initialize()
    command = "nnssl_cluster -d 999 -c 2d -p nnUNetPlans -f 0 --name clusters -k 4"
    with pytest.raises(ValueError, match=f"none were made for fold 0 .made: none.*{command}"):
        trainer.check_dense_targets()
    folder = make(tiny_dataset)
    trainer.check_dense_targets()
    other = tiny_dataset.trainer(kind, fold=1)
    other.initialize()
    another = command.replace("-f 0", "-f 1")
    with pytest.raises(ValueError, match=f"for fold 1 .made: fold_0.*{another}"):
        other.check_dense_targets()
    fitting = trainer.objective.dense_targets
    trainer.objective.dense_targets = (replace(fitting[0], classes=7),)
    with pytest.raises(ValueError, match=r"made with 4 clusters, objective.clusters is 7"):
        trainer.check_dense_targets()
    trainer.objective.dense_targets = fitting
    trainer.run_training()
    assert trainer.history.last("train_loss") is not None
    assert 0 < trainer.history.last("cluster_entropy") <= 1
    assert (Path(trainer.output_folder) / "pictures" / "epoch_0001_clusters.png").is_file()
    (folder / "p0_f0.b2nd").unlink()
    with pytest.raises(ValueError, match="1 images have no map, for instance p0_f0"):
        trainer.check_dense_targets()
    make(tiny_dataset, replace(RECIPE, seed=3))
    resumed = tiny_dataset.trainer(kind)
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    with pytest.raises(ValueError, match=r"dense targets\.clusters\.seed: stored 0, today 3"):
        resumed.on_train_start()


def test_on_a_folder_that_cannot_be_written_caches_and_maps_go_to_the_results(
    tiny_dataset: Any, trainer_yaml: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ask = tiny_dataset.preprocessed.parent, os.access

    def refuse(path: Any, mode: int) -> bool:  # the tests' user may be allowed to write anywhere
        return root not in (Path(path), *Path(path).parents) and ask(path, mode)

    monkeypatch.setattr(os, "access", refuse)
    before = set(root.rglob("*"))
    trainer_yaml("nnSSLShortPixels", SHORT + "probe: {probe_at_end: false}")
    trainer_class.cache_clear()
    trainer = tiny_dataset.trainer(trainer_class("nnSSLShortPixels"))
    trainer.run_training()
    assert set(root.rglob("*")) == before
    caches = tiny_dataset.results.parent / "nnssl_caches" / "Dataset999_Tiny/nnssl/nnUNetPlans_2d"
    assert {path.name for path in caches.iterdir()} >= {"geometry.json", "occupancy", "clusters"}
    (log,) = Path(trainer.output_folder).glob("training_log_*.txt")
    assert f"caches and dense targets go to {caches}" in log.read_text()
    made = times(caches / "clusters/fold_0")
    assert len(made) == CASES
    trainer.make_dense_targets()
    assert times(caches / "clusters/fold_0") == made


def test_what_lies_in_a_folder_that_cannot_be_written_is_used(
    tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = DataFolders(tiny_dataset.preprocessed / "nnUNetPlans_2d", 0)
    maps_before, box = make(tiny_dataset), np.array([[0, 8], [0, 8], [0, 8]])
    before = TissueShare(folders.preprocessed, folders.own / CACHE).find_share("p0_f0", box)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr("nnssl.data.tissue_share.measure_cells", lambda *_: pytest.fail("cached"))
    assert TissueShare(folders.preprocessed, folders.own / CACHE).find_share("p0_f0", box) == before
    assert folders.dense_target("clusters") == maps_before


def test_killed_while_old_maps_are_deleted_the_new_ones_are_there(
    tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tiny_dataset)
    delete = maps.shutil.rmtree

    def kill(folder: Path, ignore_errors: bool = False) -> None:
        if ignore_errors or folder.name == "samples":
            return delete(folder, ignore_errors)
        (folder / "manifest.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(maps.shutil, "rmtree", kill)
    other = replace(RECIPE, clusters=3)
    with pytest.raises(KeyboardInterrupt):
        make(tiny_dataset, other)
    monkeypatch.setattr(maps.shutil, "rmtree", delete)
    folder = make(tiny_dataset, other)
    assert read_manifest(folder)["recipe"]["clusters"] == 3
    assert [path.name for path in folder.parent.iterdir() if path.name[0] == "."] == []


def test_a_run_makes_the_maps_that_it_lacks_and_leaves_others_alone(
    tiny_dataset: Any, trainer_yaml: Callable[[str, str], str]
) -> None:
    """Absent ones by the default recipe, unfinished ones by their own; other names never."""
    trainer_yaml("nnSSLShortPixels", SHORT)
    trainer_yaml("nnSSLDino", SHORT.replace("clusters: 4", "clusters: 4, maps: dino"))
    trainer_class.cache_clear()
    trainer = tiny_dataset.trainer(trainer_class("nnSSLShortPixels"))
    trainer.run_training()
    folder = tiny_dataset.preprocessed / "nnssl" / "nnUNetPlans_2d" / "clusters/fold_0"
    made = times(folder)
    assert len(made) == CASES
    assert read_manifest(folder)["recipe"] == {
        **asdict(ClusterRecipe(clusters=4)),
        "scales": list(ClusterRecipe.scales),
    }
    trainer.make_dense_targets()
    assert times(folder) == made

    other = make(tiny_dataset)  # RECIPE, not the default
    (other / "p1_f0.b2nd").unlink()
    before = times(other)
    trainer.make_dense_targets()
    after = times(other)
    assert set(after) - set(before) == {"p1_f0.b2nd"}
    assert {name: after[name] for name in before} == before
    assert read_manifest(folder)["recipe"]["samples"] == RECIPE.samples

    dino = tiny_dataset.trainer(trainer_class("nnSSLDino"))
    dino.initialize()
    dino.make_dense_targets()
    with pytest.raises(ValueError, match=r"none were made for fold 0.*--name dino"):
        dino.check_dense_targets()


def test_maps_that_another_process_makes_are_waited_for(tiny_dataset: Any) -> None:
    """Two runs of one fold begin at once: the second one finds what the first has made."""
    folder = tiny_dataset.preprocessed / "nnssl" / "nnUNetPlans_2d" / "clusters/fold_0"
    waiting = Thread(target=make, args=(tiny_dataset,), daemon=True)
    with hold(folder.parent / "locks" / "fold_0") as waited:
        assert not waited
        waiting.start()
        waiting.join(3)
        assert waiting.is_alive()
        assert not folder.exists()
    waiting.join(60)
    assert not waiting.is_alive()
    assert len(times(folder)) == CASES


def test_every_fold_reads_its_own_maps(tiny_dataset: Any, trainer_yaml: Any) -> None:
    """Maps of two folds lie side by side; a run reads those of its own fold."""
    trainer_yaml("nnSSLFoldPixels", SHORT)
    trainer_class.cache_clear()
    folders = [make(tiny_dataset, replace(RECIPE, fold=fold)) for fold in (0, 1)]
    assert [folder.name for folder in folders] == ["fold_0", "fold_1"]
    before = times(folders[0])
    make(tiny_dataset, replace(RECIPE, fold=1, seed=3))
    assert times(folders[0]) == before
    for fold in (0, 1):
        trainer = tiny_dataset.trainer(trainer_class("nnSSLFoldPixels"), fold=fold)
        trainer.initialize()
        trainer.check_dense_targets()
        assert trainer.batch_maker.reader.dense_targets == {"clusters": folders[fold]}
    blosc2.asarray(np.full((1, 8, 40, 40), 2, np.int16), urlpath=str(folders[1] / "x.b2nd"))
    (folders[1] / "x.b2nd").replace(folders[1] / "p2_f0.b2nd")
    box = np.array([[0, 8], [0, 40], [0, 40]])
    assert (trainer.batch_maker.reader.read_dense_target("clusters", "p2_f0", box) == 2).all()


def test_maps_of_no_fold_stop_a_run_that_only_validates(
    tiny_dataset: Any, trainer_yaml: Any
) -> None:
    trainer_yaml("nnSSLNoPixels", SHORT)
    trainer_class.cache_clear()
    trainer = tiny_dataset.trainer(trainer_class("nnSSLNoPixels"), fold=1)
    trainer.initialize()
    with pytest.raises(ValueError, match=r"of fold 1 are not in .*nnssl_cluster -f 1"):
        _ = trainer.batch_maker
