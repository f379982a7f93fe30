"""Pictures of what an objective sees and makes, for people who would rather look than read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnssl.common.drawing import escape_math, save_figure
from nnssl.modules.cluster_metrics import take_middle_slice
from nnssl.modules.panels import Panel, Row
from nnssl.objectives import Batch, Objective

COLUMNS = 8
GAP = 0.04  # between images, in widths of an image
WIDTH = 13.0  # inches of all columns together, unless the images would be larger than LARGEST
LARGEST = 1.6
SINGLE = 4.0  # inches of an image that stands alone
ERRORS = "magma"


@torch.no_grad()
def save_pictures(
    objective: Objective, batch: Batch, folder: Path, stem: str, heading: str = ""
) -> None:
    """Draw the views of a batch, and what the objective has to show of it.

    Args:
        objective: draws its own panels.
        batch: with views.
        folder: where the pictures go.
        stem: begins the name of each file.
        heading: what run this is; the panel's name is added.
    """
    folder.mkdir(parents=True, exist_ok=True)
    panels = {"views": show_views(batch), **objective.illustrate(batch)}
    for name, panel in panels.items():
        title = f"{heading}: {name.replace('_', ' ')}"
        save_panel(panel, folder / f"{stem}_{name}.png", title)


def show_views(batch: Batch) -> Panel:
    """The views of a batch, a row each: first channel; of a volume its middle slice."""
    views: Mapping[str, Any] = batch["views"]
    rows = [Row(n, take_middle_slice(view.image[:COLUMNS, 0])) for n, view in views.items()]
    return Panel(rows, batch["identifier"])


def save_panel(panel: Panel, file: Path, heading: str = "") -> None:
    """Writes a panel as one picture."""
    save_figure(draw_panel(panel, heading), file)


def draw_panel(panel: Panel, heading: str) -> Any:
    """A figure of images with borders, names of rows and columns, and colour bars of scales."""
    from matplotlib.figure import Figure

    arrays = [row.images.float().cpu().numpy() for row in panel.rows]
    count = max(map(len, arrays))
    tall = max(array.shape[1] / array.shape[2] for array in arrays)  # all rows are as tall
    size = min(LARGEST, WIDTH / count) if count > 1 else SINGLE
    figure = Figure(
        figsize=(size * count + 2.8, size * (tall + GAP) * len(arrays) + 0.9), layout="constrained"
    )
    axis, greys = figure.subplots(), _find_grey_scales(panel, arrays)
    for number, (row, images) in enumerate(zip(panel.rows, arrays, strict=True)):
        top, limits = number * (tall + GAP), greys
        if row.scale:
            high = float(np.percentile(images, 99.5)) or 1.0
            limits = [{"vmin": 0.0, "vmax": high, "cmap": ERRORS}] * count
        for column, image in enumerate(images):
            left, bottom = column * (1 + GAP), top + image.shape[0] / image.shape[1]
            shown = image if image.ndim == 2 else np.clip(image, 0, 1)
            options: Any = limits[column] if image.ndim == 2 else {}
            drawn = axis.imshow(
                shown,
                extent=(left, left + 1, bottom, top),
                interpolation="nearest",
                **options,
            )
        if row.scale:
            figure.colorbar(drawn, ax=axis, label=escape_math(row.scale), shrink=0.6)
    axis.set(xlim=(-GAP, count * (1 + GAP)), ylim=(len(arrays) * (tall + GAP), -GAP))
    places = [number * (tall + GAP) + tall / 2 for number in range(len(arrays))]
    axis.set_yticks(places, [escape_math(row.name) for row in panel.rows])
    names = [escape_math(name) for name in panel.columns[:count]]
    slanted: Any = {"rotation": 20, "ha": "left"} if count > 1 else {}
    axis.set_xticks([n * (1 + GAP) + 0.3 for n in range(len(names))], names, fontsize=8, **slanted)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.set_frame_on(False)
    figure.suptitle(escape_math(heading), x=0.01, ha="left", fontsize=11)
    return figure


def _find_grey_scales(panel: Panel, arrays: list[np.ndarray]) -> list[dict[str, Any]]:
    """Of each column the lowest and highest grey value, over all rows of images."""
    grey = [a for a, row in zip(arrays, panel.rows, strict=True) if a.ndim == 3 and not row.scale]
    scales = []
    for column in range(max(map(len, grey), default=0)):
        values = np.concatenate([a[column].ravel() for a in grey if column < len(a)])
        low, high = np.percentile(values, [1, 99])
        scales.append({"vmin": float(low), "vmax": max(float(high), low + 1e-6), "cmap": "gray"})
    return scales
