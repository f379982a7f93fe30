"""NMI of clusters and labels: known partitions, the report of a run, nothing changed by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from nnssl.modules import unet
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.probe import during_training
from nnssl.probe.clusters import (
    cluster_volume,
    compute_objective_nmi,
    normalise_mutual_information,
)
from nnssl.probe.encoders import build_random_network, isolate_generators, read_initial_state
from nnssl.probe.probe import Probe
from nnssl.probe.settings import ProbeSettings
from nnssl.training import pretraining_loop
from nnssl.training.factory import trainer_class
from tests.probe.test_probe import same

TRAINER = """
extends: nnSSLClusteringTrainer
training: {num_epochs: 1, num_iterations_per_epoch: 3, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 0, picture_every: 9}
objective: {prototypes: 5, hidden_features: 16, embedding_features: 8, momentum: 0.9}
probe: {probe_draws: 1, probe_at_end: %s}
"""
CPU = torch.device("cpu")
KEYS = ("nmi", "nmi_balanced")


class Known:
    """In the place of an objective: bright voxels are cluster 1, the brightest 2."""

    class context:
        patch_size = (16, 16)

    def __init__(self, find: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.clusters = find


def bright(image: torch.Tensor) -> torch.Tensor:
    return (image[:, 0] > 0).long() + (image[:, 0] > 1).long()


@pytest.fixture
def probe(tiny_dataset: Any) -> Probe:
    trainer = tiny_dataset.trainer(trainer_class("nnSSLClusteringTrainer"))
    trainer.initialize()
    return Probe(trainer.make_probe_fold(), ProbeSettings(probe_draws=1), CPU, clusters=3)


@pytest.mark.parametrize("patch_size", [(16, 16), (6, 16, 16), (64, 64)])
def test_windows_give_every_voxel_its_own_cluster(patch_size: tuple[int, ...]) -> None:
    image = torch.randn(1, 21, 40, 36)
    seen = []

    def find(images: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images.shape[2:]))
        return bright(images)

    objective = Known(find)
    objective.context = type("Context", (), {"patch_size": patch_size})
    assert torch.equal(cluster_volume(objective, image), bright(image[None])[0])
    assert set(seen) == {patch_size}


def test_labels_are_told_by_brightness_and_not_by_noise(probe: Probe) -> None:
    """The classes differ in brightness; a partition into the classes themselves tells all."""
    cases = probe.choose_cases()
    assert cases.clusters is not None
    known = compute_objective_nmi(Known(bright), cases.volumes, cases.clusters)
    noise = compute_objective_nmi(
        Known(lambda x: torch.randint(3, x[:, 0].shape)), cases.volumes, cases.clusters
    )
    assert min(known.values()) > 0.4
    assert max(noise.values()) < 0.02
    perfect = ((name, y.numpy(), y.numpy()) for name, y in classes(cases).items())
    assert cases.clusters.compute_nmi(perfect) == pytest.approx({"nmi": 1, "nmi_balanced": 1})


def test_examples_stand_for_all_voxels_of_their_class(probe: Probe) -> None:
    """Few voxels per class are drawn; their weights give the table of the whole volumes."""
    cases = probe.choose_cases()
    assert cases.clusters is not None
    for case in cases.scored:
        labels = cases.volumes.read_labels(case.identifier)
        _, drawn = cases.clusters.examples[case.identifier]
        sizes = cases.clusters.sizes[case.identifier]
        assert sizes.tolist() == [int((labels == k).sum()) for k in range(3)]
        assert len(drawn) < sizes.sum()
    sizes = np.sum(list(cases.clusters.sizes.values()), axis=0)
    pairs = classes(cases).items()
    found = cases.clusters.compute_nmi(
        (name, (y > 0).long().numpy(), y.numpy()) for name, y in pairs
    )
    for key, shares in (("nmi", sizes / sizes.sum()), ("nmi_balanced", np.full(3, 1 / 3))):
        of_labels, of_clusters = entropy(shares), entropy(np.array([shares[0], 1 - shares[0]]))
        assert found[key] == pytest.approx(2 * of_clusters / (of_labels + of_clusters))


def classes(cases: Any) -> dict[str, torch.Tensor]:
    """Classes of the examples of each validation volume."""
    return {name: cases.clusters.examples[name][1] for name in cases.clusters.sizes}


def entropy(shares: np.ndarray) -> float:
    return float(-(shares * np.log(shares)).sum())


def test_k_means_is_fitted_without_a_label(probe: Probe, monkeypatch: Any) -> None:
    cases = probe.choose_cases()
    clusters = cases.clusters
    assert clusters is not None
    assert set(clusters.places) == {case.identifier for case in cases.fitted}
    assert set(clusters.sizes) == {"p0_f0", "p0_f1"}
    first = probe.probe_random(cases).nmi
    assert all(0 < first[key] <= 1 for key in KEYS)
    shuffled = {name: torch.randperm(3)[y] for name, (_, y) in clusters.examples._chosen.items()}
    centres = []
    from sklearn import cluster

    class Remembering(cluster.KMeans):
        def fit(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
            centres.append(x)
            return super().fit(x)

    monkeypatch.setattr(cluster, "KMeans", Remembering)
    probe.probe_random(cases)
    for name, y in shuffled.items():
        clusters.examples._chosen[name] = (clusters.examples._chosen[name][0], y)
    probe.probe_random(cases)
    assert np.array_equal(centres[0], centres[1])


def test_the_random_encoder_is_the_one_that_the_run_began_with(tiny_dataset: Any) -> None:
    trainer = tiny_dataset.trainer(trainer_class("nnSSLMAETrainer"))
    trainer.initialize()
    checkpoint = trainer.compose_checkpoint()
    seed, count = read_initial_state(checkpoint)
    assert (seed, count) == (trainer.settings.seed, 1)
    with isolate_generators(CPU, seed):
        network = build_random_network(trainer.make_probe_fold(), CPU, count)
    found = unet.plain_state_dict(network)
    assert same(found, unet.plain_state_dict(trainer.objective.network))
    assert read_initial_state({"network_weights": {}})[1] == 2


@pytest.fixture
def run(
    tiny_dataset: Any, trainer_yaml: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[bool], Any]:
    """`run(probe)` trains three steps of clustering, with or without the probe at the end."""
    monkeypatch.setattr(pretraining_loop, "save_pictures", lambda *_: None)
    monkeypatch.setattr(pretraining_loop, "draw_progress", lambda *_: None)
    monkeypatch.setattr(during_training.pictures, "draw", lambda *_: None)

    def train(probed: bool) -> Any:
        trainer_yaml(f"nnSSLClustersProbed{probed}", TRAINER % str(probed).lower())
        trainer_class.cache_clear()
        trainer = tiny_dataset.trainer(trainer_class(f"nnSSLClustersProbed{probed}"))
        torch.manual_seed(5)
        np.random.seed(5)
        trainer.run_training()
        return trainer

    return train


def test_a_run_tells_its_nmi_beside_the_baselines_and_stays_what_it_was(
    run: Callable[[bool], Any],
) -> None:
    """Weights, optimiser, heads, generators and modes are bit-equal with and without the report."""
    kept = []
    for probed in (False, True):
        trainer = run(probed)
        content = read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")
        kept.append(
            {
                "weights": content["network_weights"],
                "optimizer": content["optimizer_state"],
                "objective": content["nnssl"]["objective_state"],
                "torch": torch.get_rng_state(),
                "numpy": np.random.get_state()[1].tolist(),
                "training": [module.training for module in trainer.network.modules()],
            }
        )
    for key in kept[0]:
        assert same(kept[0][key], kept[1][key]), key
    history = trainer.history.values
    for key in KEYS:
        for ending in ("_clusters", "", "_random"):
            assert 0 <= history[f"probe_{key}{ending}"][-1] <= 1
    record = json.loads((Path(trainer.output_folder) / "probe.json").read_text())
    assert record["settings"]["clusters"] == 5
    assert record["clusters"]["nmi"] == history["probe_nmi_clusters"][-1]
    assert record["encoders"]["random"]["nmi"] == history["probe_nmi_random"][-1]
    assert "NMI of clusters and labels" in Path(trainer.log_file).read_text()
    assert "nmi_balanced" in (Path(trainer.output_folder) / "history.csv").read_text()


def test_too_few_clusters_are_refused(probe: Probe) -> None:
    with pytest.raises(ValueError, match="clusters: found 1, allowed from 2"):
        Probe(probe.fold, probe.settings, CPU, clusters=1)


def test_nmi_is_scikit_learn_s() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 500)
    clusters = np.where(random.random(500) < 0.6, labels * 2, random.integers(0, 9, 500))

    def nmi(first: np.ndarray, second: np.ndarray) -> float:
        return normalise_mutual_information(np.histogram2d(first, second, np.arange(11))[0])

    assert nmi(clusters, labels) == pytest.approx(normalized_mutual_info_score(labels, clusters))
    assert nmi(labels, 3 - labels) == pytest.approx(1)
    assert np.isnan(nmi(clusters, labels * 0))
    assert np.isnan(normalise_mutual_information(np.zeros((3, 4))))
