"""Pictures of what an objective sees and makes, for people who would rather look than read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nnssl.objectives import Batch, Objective

COLUMNS = 8


@torch.no_grad()
def save_pictures(objective: Objective, batch: Batch, folder: Path, stem: str) -> None:
    """Draw the views of a batch, and what the objective has to show of it."""
    folder.mkdir(parents=True, exist_ok=True)
    panels = {"views": _stack_views(batch["views"]), **objective.illustrate(batch)}
    for name, panel in panels.items():
        save_panel(panel, folder / f"{stem}_{name}.png")


def _stack_views(views: dict[str, object]) -> Tensor:
    """(views, samples, H, W): first channel; of a volume its middle slice."""
    images = [view.image[:COLUMNS, 0] for view in views.values()]  # type: ignore[attr-defined]
    flat = [i if i.ndim == 3 else i[:, i.shape[1] // 2] for i in images]
    height, width = (max(i.shape[a] for i in flat) for a in (1, 2))
    padded = [
        torch.nn.functional.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in flat
    ]
    return torch.stack(padded)


def save_panel(panel: Tensor, file: Path) -> None:
    """Rows and columns of grey (rows, columns, H, W) or coloured (..., 3) images as one picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    rows, columns, height, width = panel.shape[:4]
    grid = panel.float().cpu().numpy().swapaxes(1, 2)
    grid = grid.reshape(rows * height, columns * width, *panel.shape[4:])
    if grid.ndim == 3:
        plt.imsave(file, np.clip(grid, 0, 1))
        return
    low, high = np.percentile(grid, [1, 99])
    plt.imsave(file, grid, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
