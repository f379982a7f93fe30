"""What clusters tell of the labels of validation volumes, at the same voxels for every clustering.

K-means of frozen features is fitted on voxels of training volumes that are drawn without a look at
any label; labels are read of the validation volumes, to be compared with.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import entropy
from torch import Tensor
from torch.nn import functional

from nnssl.cluster_maps.features import windows
from nnssl.data.case_table import Case
from nnssl.probe.features import Block
from nnssl.probe.volumes import Examples, Volumes, read_features_at

FITTED_VOXELS = 1000  # per training volume, of any class
K_MEANS_SEED = 0
SLICES = 16  # that a 2D objective sees at a time

Compared = Iterable[tuple[str, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class ClusterCases:
    """Voxels at which clusterings of K clusters are fitted and compared with labels.

    Attributes:
        count: K.
        places: (N, 3) voxels of each training volume.
        examples: voxels and classes of the validation volumes, equally many per class at most.
        sizes: voxels per class of each whole validation volume.
    """

    count: int
    places: Mapping[str, Tensor]
    examples: Examples
    sizes: Mapping[str, np.ndarray]

    @classmethod
    def choose(
        cls, count: int, volumes: Volumes, fitted: Sequence[Case], scored: Sequence[Case]
    ) -> ClusterCases:
        """The voxels of these training and validation volumes."""
        names = [case.identifier for case in scored]
        sizes = {name: _count_classes(volumes.read_labels(name), volumes.classes) for name in names}
        places = {case.identifier: _draw_voxels(case) for case in fitted}
        return cls(count, places, Examples(volumes, names), sizes)

    def compute_nmi(self, compared: Compared) -> dict[str, float]:
        """`nmi` over all voxels of the volumes, and `nmi_balanced`: every class counts the same.

        Args:
            compared: case, clusters (N,) and classes (N,) of its examples, in parts of any size.
        """
        tables = {case: np.zeros((self.count, self.examples.classes)) for case in self.sizes}
        for case, clusters, classes in compared:
            np.add.at(tables[case], (clusters, classes), 1)
        drawn = {case: table.sum(0).clip(1) for case, table in tables.items()}
        whole = sum(table * self.sizes[case] / drawn[case] for case, table in tables.items())
        balanced = whole / whole.sum(0).clip(1)
        found = {"nmi": whole, "nmi_balanced": balanced}
        numbers = {k: normalise_mutual_information(table) for k, table in found.items()}
        return {k: value for k, value in numbers.items() if np.isfinite(value)}


class FeatureClusters:
    """K-means of the features of one encoder, from the blocks of one pass over the volumes."""

    def __init__(self, cases: ClusterCases) -> None:
        self.cases = cases
        self._points: list[Tensor] = []
        self._met: list[tuple[str, Tensor, Tensor]] = []

    def fit_on(self, case: str, block: Block) -> None:
        """Takes one block of a training volume."""
        self._points.append(read_features_at(block, self.cases.places[case])[0].cpu())

    def watch(self, case: str, stream: Iterator[Block]) -> Iterator[Block]:
        """The blocks of a validation volume, whose features are kept where labels are compared."""
        for block in stream:
            x, y = self.cases.examples.read_features(case, block)
            self._met.append((case, x.cpu(), y))
            yield block

    def compute_nmi(self) -> dict[str, float]:
        """See `ClusterCases`; features are standardised as on the training volumes."""
        from sklearn.cluster import KMeans

        points = torch.cat(self._points)
        mean, scale = points.mean(0), points.std(0).clamp_min(1e-6)
        model = KMeans(self.cases.count, n_init=1, random_state=K_MEANS_SEED)
        model.fit(((points - mean) / scale).numpy())
        return self.cases.compute_nmi(
            (case, model.predict(((x - mean) / scale).numpy()), y.numpy())
            for case, x, y in self._met
            if len(x)
        )


def compute_objective_nmi(
    objective: Any, volumes: Volumes, cases: ClusterCases
) -> dict[str, float]:
    """See `ClusterCases.compute_nmi`, for the clusters that an objective itself gives to voxels."""

    def compared() -> Compared:
        for case in cases.sizes:
            voxels, classes = cases.examples[case]
            found = cluster_volume(objective, volumes.read_image(case))
            yield case, found[tuple(voxels.T)].numpy(), classes.numpy()

    return cases.compute_nmi(compared())


def cluster_volume(objective: Any, image: Tensor) -> Tensor:
    """Clusters of a volume (C, Z, Y, X), (Z, Y, X) int64 on the CPU.

    The objective sees windows as large as its patch, as in training.
    """
    patch_size = tuple(objective.context.patch_size)
    flat = len(patch_size) == 2
    size = (SLICES, *patch_size) if flat else patch_size
    least = (1, *patch_size) if flat else patch_size
    missing = [max(0, s - n) for n, s in zip(image.shape[1:], least, strict=True)]
    padded = functional.pad(image, [n for m in reversed(missing) for n in (0, m)])
    found = torch.empty(padded.shape[1:], dtype=torch.int64)
    for window in windows(padded.shape[1:], size):
        index = (slice(None), *window)
        part = padded[index]
        images = part.transpose(0, 1) if flat else part[None]
        clusters = objective.clusters(images).cpu()
        found[window] = clusters if flat else clusters[0]
    return found[tuple(slice(n) for n in image.shape[1:])]


def _draw_voxels(case: Case) -> Tensor:
    """(N, 3), drawn by the case's name."""
    generator = np.random.default_rng(zlib.crc32(case.identifier.encode()))
    return torch.from_numpy(generator.integers(0, case.shape, (FITTED_VOXELS, 3)))


def _count_classes(labels: Tensor, classes: int) -> np.ndarray:
    return torch.bincount(labels[labels >= 0], minlength=classes).numpy()


def normalise_mutual_information(table: np.ndarray) -> float:
    """`2 I(C; L) / (H(C) + H(L))` of counts (K, L): 0 independent, 1 the same partition.

    NaN where there is only one label or no count at all. Counts may be weighted, so this is not
    scikit-learn's `normalized_mutual_info_score`, which takes labels.
    """
    if (table.sum(0) > 0).sum() < 2:
        return float("nan")
    of_clusters, of_labels, of_both = map(entropy, (table.sum(1), table.sum(0), table.ravel()))
    return float(2 * (of_clusters + of_labels - of_both) / (of_clusters + of_labels))
