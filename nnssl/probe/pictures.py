"""Pictures of the embedding space and of nearest slices."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnssl.common.drawing import COLOURS, escape_math, make_panels, save_figure
from nnssl.nnunet.images import image_file, open_image
from nnssl.probe.slices import Slices

EMBEDDING, NEIGHBOURS = "probe_embedding.png", "probe_neighbours.png"
QUERIES = 5
UMAP_SEED = 0
MOST_NAMES = 12  # in a key of colours
WIDTH, HEIGHT, CAPTION, GAP, HEADING = 1.8, 2.1, 0.3, 0.08, 0.35  # of a slice, in inches


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
    """Two principal components (and UMAP, where installed) in two or three colourings."""
    save_figure(make_embedding_figure(slices, partitions), file)


def make_embedding_figure(slices: Slices, partitions: int) -> Any:
    """One panel per map and colouring, each with a key of its colours."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    matrix = slices.matrix.numpy()
    maps = {"PCA": PCA(2).fit_transform(StandardScaler().fit_transform(matrix))}
    if find_spec("umap") is not None:
        from umap import UMAP

        maps["UMAP"] = UMAP(random_state=UMAP_SEED).fit_transform(matrix)
    parts = (slices.positions * partitions).long().clamp(0, partitions - 1)
    patients, datasets = slices.get_numbers("patient"), slices.get_numbers("dataset")
    of_patient = {int(case.patient): case.identifier for case in slices.cases}
    colours = {
        "part of the volume": (parts, lambda n: f"{n + 1} of {partitions}"),
        "patient": (patients, lambda n: of_patient[n]),
        "dataset": (datasets, lambda n: f"dataset {n}"),
    }
    if datasets.unique().numel() == 1:
        del colours["dataset"]
    figure, axes = make_panels(len(colours) * len(maps), 5.4, 4.6, most=len(colours))
    each = [(name, points, *found) for name, points in maps.items() for found in colours.items()]
    for axis, (method, points, name, (values, write)) in zip(axes, each, strict=True):
        _draw_points(axis, points, values, write)
        first, second = (f"{method}, component {number}" for number in (1, 2))
        axis.set(xlabel=first, ylabel=second, xticks=[], yticks=[])
        axis.set_title(f"{method} of slices, by {name} ({values.unique().numel()})", loc="left")
    return figure


def _draw_points(axis: Any, points: np.ndarray, values: torch.Tensor, write: Any) -> None:
    """Points in colours with their key; of many values only the first have a name."""
    from matplotlib import colormaps

    numbers = values.unique().tolist()
    few = len(numbers) <= len(COLOURS)
    for place, number in enumerate(numbers):
        colour = COLOURS[place] if few else colormaps["turbo"](place / (len(numbers) - 1))
        label = escape_math(write(number)) if place < MOST_NAMES else None
        axis.scatter(*points[(values == number).numpy()].T, color=[colour], s=11, label=label)
    more = len(numbers) - MOST_NAMES
    title = f"and {more} more, from blue to red" if more > 0 else None
    key: Any = {"bbox_to_anchor": (1.0, 1.0), "loc": "upper left", "frameon": False}
    axis.legend(fontsize=7, title=title, title_fontsize=7, markerscale=1.5, **key)


def draw_neighbours(slices: Slices, queries: Sequence[str], file: Path, cases: Path) -> None:
    """A few slices of the first query volume, each beside its nearest slices of other patients."""
    from matplotlib.figure import Figure

    rows = slices.find_rows(queries[:1])
    rows = rows[torch.linspace(0, len(rows) - 1, min(QUERIES, len(rows))).round().long()]
    nearest = slices.find_nearest(rows)
    table = torch.cat([rows[:, None], nearest], dim=1).tolist()
    columns = len(table[0])
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * len(table) + HEADING))
    axis = figure.add_axes((0, 0, 1, 1))  # one for all: drawing many takes seconds
    for place, number in enumerate(chain(*table)):
        case, voxel = slices.find_voxel(number)
        image = _read_plane(cases, case.identifier, case.axis, voxel)
        scale = min((WIDTH - GAP) / image.shape[1], (HEIGHT - CAPTION) / image.shape[0])
        tall, wide = (scale * voxels for voxels in image.shape)
        middle, top = WIDTH * (place % columns + 0.5), HEIGHT * (place // columns) + HEADING
        extent = (middle - wide / 2, middle + wide / 2, top + CAPTION + tall, top + CAPTION)
        axis.imshow(image, cmap="gray", extent=extent)
        what = "asked: " if place % columns == 0 else ""
        where = f"at {slices.positions[number]:.2f} of the volume"
        text = escape_math(f"{what}{case.identifier}\n{where}")
        axis.text(middle, top + CAPTION - GAP / 2, text, fontsize=7, ha="center", va="bottom")
    axis.set(xlim=(0, WIDTH * columns), ylim=(HEIGHT * len(table) + HEADING, 0))
    axis.set_axis_off()
    title = "Slices (left), and the most similar slices of other patients, nearest first"
    axis.text(GAP, HEADING / 2, title, fontsize=11, va="center")
    save_figure(figure, file)


def _read_plane(folder: Path, identifier: str, axis: int, index: int) -> np.ndarray:
    """First channel of one plane across an array axis."""
    where: list[Any] = [slice(None)] * 3
    where[axis] = slice(index, index + 1)
    place = (slice(0, 1), *where)
    part = open_image(image_file(folder, identifier))[place]
    return np.asarray(part, np.float32)[0].take(0, axis)
