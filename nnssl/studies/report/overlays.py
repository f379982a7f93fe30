"""Worst cases as pictures: outlines of reference and prediction on the image of the patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from nnssl.convert.volumes import be_quiet
from nnssl.nnunet.paths import RAW, TRAINING_IMAGES, find_root
from nnssl.studies.analysis.validation import Validation
from nnssl.studies.report.figures import COLOURS, Picture, escape_math, make_panels, render
from nnssl.studies.report.findings import Findings
from nnssl.studies.run.spec import slug

PER_METHOD = 3


def draw_worst_cases(found: Findings) -> list[Picture]:
    """One picture per method: its cases of lowest mean Dice, at most one per patient."""
    be_quiet()
    keys = ["cell", "case", "patient", "budget", "repetition"]
    pictures = []
    for method, table in found.main.groupby("method", sort=False):
        means = table.groupby(keys)["dice"].mean().dropna().sort_values(kind="stable")
        worst = means.reset_index().drop_duplicates("patient").head(PER_METHOD)
        pictures += [_draw_method(found, str(method), worst)] if len(worst) else []
    return pictures


def _draw_method(found: Findings, method: str, rows: pd.DataFrame) -> Picture:
    cells = {cell.id: cell for cell in found.folder.cells}
    figure, axes = make_panels(len(rows), 4.0, 4.3, most=PER_METHOD)
    for axis, row in zip(axes, rows.itertuples(), strict=True):
        _draw_case(axis, found.folder.fold_folder(cells[row.cell]), row.case)
        about = f"{row.budget:g} labels, repetition {row.repetition}"
        axis.set_title(escape_math(f"{row.case}, Dice {row.dice:.2f}\n{about}"), fontsize=9)
    return Picture(
        f"worst_{slug(method)}",
        f"Worst cases of {method}",
        "The slice with the most wrong voxels. Solid: reference. Dashed: prediction. One colour "
        "per structure.",
        render(figure, "png"),
        "png",
    )


def _draw_case(axis: Any, fold: Path, case: str) -> None:
    run = Validation(fold)
    predicted, reference = (sitk.ReadImage(str(path)) for path in run.files[case])
    labels = [_read_volume(image) for image in (predicted, reference)]
    spacing = ([1.0] * 3 + list(reference.GetSpacing()[::-1]))[-3:]
    across = int(np.argmax(spacing))  # the slices as they were taken; axis 0 where all are equal
    wrong = (labels[0] != labels[1]).sum(axis=tuple(a for a in range(3) if a != across))
    place = int(wrong.argmax())
    height, width = (spacing[axis_] for axis_ in range(3) if axis_ != across)
    image = _find_image(fold, case, labels[1].shape).take(place, axis=across)
    low, high = np.percentile(image, [1, 99])
    axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=height / width)
    values = sorted(set(np.unique(np.stack(labels))) - {0, run.ignore_label})
    for volume, line in zip(labels, ("dashed", "solid"), strict=True):
        for number, value in enumerate(values):
            mask = volume.take(place, axis=across) == value
            if mask.any() and not mask.all():
                colour = COLOURS[number % len(COLOURS)]
                axis.contour(mask, [0.5], colors=[colour], linestyles=line, linewidths=1.4)
    axis.set_axis_off()


def _find_image(fold: Path, case: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """First channel of the image; black where nnUNet_raw is not at hand."""
    root = find_root(RAW)
    folder = root / fold.parents[1].name / TRAINING_IMAGES if root else None
    files = sorted(folder.glob(f"{case}_0000.*")) if folder is not None else []
    if not files:
        return np.zeros(shape)
    volume = _read_volume(sitk.ReadImage(str(files[0])))
    return volume if volume.shape == shape else np.zeros(shape)


def _read_volume(image: sitk.Image) -> NDArray[Any]:
    """(Z, Y, X), also of a 2D image."""
    array = sitk.GetArrayFromImage(image)
    return array if array.ndim == 3 else array[None]
