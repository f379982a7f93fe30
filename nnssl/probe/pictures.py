"""Pictures of the embedding space and of nearest slices."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnssl.common.files import atomic_path
from nnssl.nnunet.images import image_file, open_image
from nnssl.probe.slices import Slices

EMBEDDING, NEIGHBOURS = "probe_embedding.png", "probe_neighbours.png"
QUERIES = 5
UMAP_SEED = 0


def draw(
    slices: Slices, queries: Sequence[str], partitions: int, folder: Path, cases: Path
) -> None:
    """Writes both pictures.

    Args:
        slices: embeddings of the probed volumes.
        queries: identifiers of the volumes whose slices are looked up.
        partitions: parts of a volume, for the colours.
        folder: where the pictures go.
        cases: nnU-Net's preprocessed folder, from which slices are read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw_embedding(slices, partitions, folder / EMBEDDING)
    if slices.get_numbers("patient").unique().numel() > 1:
        draw_neighbours(slices, queries, folder / NEIGHBOURS, cases)


def draw_embedding(slices: Slices, partitions: int, file: Path) -> None:
    """Two principal components (and UMAP, where installed) in three colourings."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    matrix = slices.matrix.numpy()
    maps = {"PCA": PCA(2).fit_transform(StandardScaler().fit_transform(matrix))}
    if find_spec("umap") is not None:
        from umap import UMAP

        maps["UMAP"] = UMAP(random_state=UMAP_SEED).fit_transform(matrix)
    parts = (slices.positions * partitions).floor().clamp(0, partitions - 1)
    colours = {"partition": parts, "case": slices.volumes, "dataset": slices.get_numbers("dataset")}
    plt = _pyplot()
    figure, axes = plt.subplots(len(maps), 3, figsize=(15, 4.8 * len(maps)), squeeze=False)
    for row, (method, points) in zip(axes, maps.items(), strict=True):
        for axis, (name, values) in zip(row, colours.items(), strict=True):
            colour_map = "viridis" if values.is_floating_point() else "tab20"
            axis.scatter(*points.T, c=values.numpy(), s=9, cmap=colour_map)
            count = values.unique().numel()
            axis.set(title=f"{method}: {name} ({count})", xticks=[], yticks=[])
    _save(figure, file)


def draw_neighbours(slices: Slices, queries: Sequence[str], file: Path, cases: Path) -> None:
    """A few slices of the first query volume, each beside its nearest slices of other patients."""
    rows = slices.find_rows(queries[:1])
    rows = rows[torch.linspace(0, len(rows) - 1, min(QUERIES, len(rows))).round().long()]
    nearest = slices.find_nearest(rows)
    table = torch.cat([rows[:, None], nearest], dim=1).tolist()
    plt = _pyplot()
    size = (1.8 * len(table[0]), 2 * len(table))
    figure, axes = plt.subplots(len(table), len(table[0]), figsize=size, squeeze=False)
    positions = slices.positions
    for line, numbers in zip(axes, table, strict=True):
        for column, (axis, number) in enumerate(zip(line, numbers, strict=True)):
            case, voxel = slices.find_voxel(number)
            axis.imshow(_read_plane(cases, case.identifier, case.axis, voxel), cmap="gray")
            what = "query" if column == 0 else case.identifier
            axis.set_title(f"{what}\n{positions[number]:.2f}", fontsize=6)
            axis.axis("off")
    _save(figure, file)


def _read_plane(folder: Path, identifier: str, axis: int, index: int) -> np.ndarray:
    """First channel of one plane across an array axis."""
    where: list[Any] = [slice(None)] * 3
    where[axis] = slice(index, index + 1)
    place = (slice(0, 1), *where)
    part = open_image(image_file(folder, identifier))[place]
    return np.asarray(part, np.float32)[0].take(0, axis)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    return plt


def _save(figure: Any, file: Path) -> None:
    figure.tight_layout()
    with atomic_path(file) as part:
        figure.savefig(part, dpi=80)
    _pyplot().close(figure)
