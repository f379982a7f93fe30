"""The pictures of a report that show patients: worst cases, and what pre-training makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from nnssl.common.drawing import COLOURS, GREY, escape_math, make_panels, render
from nnssl.common.files import read_json
from nnssl.common.page import Picture
from nnssl.convert.volumes import be_quiet
from nnssl.nnunet.paths import DATASET_FILE, RAW, TRAINING_IMAGES, find_root
from nnssl.probe.pictures import EMBEDDING
from nnssl.probe.volumes import IGNORE, read_structures
from nnssl.studies.analysis.validation import Validation
from nnssl.studies.report.findings import Findings
from nnssl.studies.report.words import name_budget, name_structure
from nnssl.studies.run.spec import slug

PER_METHOD = 3


def draw_worst_cases(found: Findings) -> list[Picture]:
    """One picture per method: its cases of lowest mean Dice, at most one per patient."""
    be_quiet()
    cells = {cell.id: cell for cell in found.folder.cells}
    described: dict[str, Any] = {}  # dataset.json, the same for all runs of a study
    keys = ["cell", "case", "patient", "budget", "repetition"]
    pictures = []
    for method, table in found.main.groupby("method", sort=False):
        means = table.groupby(keys)["dice"].mean().dropna().sort_values(kind="stable")
        worst = means.reset_index().drop_duplicates("patient").head(PER_METHOD)
        if len(worst):
            folds = [found.folder.fold_folder(cells[name]) for name in worst["cell"]]
            described = described or read_json(folds[0].parent / DATASET_FILE)
            rows = worst.assign(fold=folds)
            pictures.append(_draw_method(found.unit, str(method), rows, described))
    return pictures


def _draw_method(
    unit: str, method: str, rows: pd.DataFrame, described: Mapping[str, Any]
) -> Picture:
    colours: dict[str, str] = {}  # colours of structures that were drawn
    figure, axes = make_panels(len(rows), 4.0, 4.3, most=PER_METHOD)
    for axis, row in zip(axes, rows.itertuples(), strict=True):
        where = _draw_case(axis, row.fold, row.case, described, colours)
        about = f"{name_budget(row.budget, unit)}, repetition {row.repetition}"
        title = f"{row.case}, {where}, Dice {row.dice:.2f}\n{about}"
        axis.set_title(escape_math(title), fontsize=9)
    _add_structures(figure, colours)
    return Picture(
        f"worst_{slug(method)}",
        f"Worst cases of {method}",
        "The slice with the most wrong voxels; slices are counted from 1, as they are stored. "
        "Solid: reference. Dashed: prediction. One colour per structure.",
        render(figure, "png"),
        "png",
    )


def _draw_case(
    axis: Any, fold: Path, case: str, described: Mapping[str, Any], colours: dict[str, str]
) -> str:
    """Draws a case, adds the colours of its structures, and returns which slice it is."""
    structures = read_structures(described)
    files = Validation(fold).files[case]
    predicted, reference = (sitk.ReadImage(str(path)) for path in files)
    labels = [_read_volume(image) for image in (predicted, reference)]
    spacing = ([1.0] * 3 + list(reference.GetSpacing()[::-1]))[-3:]
    across = int(np.argmax(spacing))  # the slices as they were taken; axis 0 where all are equal
    wrong = (labels[0] != labels[1]).sum(axis=tuple(a for a in range(3) if a != across))
    place = int(wrong.argmax())
    height, width = (spacing[axis_] for axis_ in range(3) if axis_ != across)
    image = _find_image(fold, case, labels[1].shape).take(place, axis=across)
    low, high = np.percentile(image, [1, 99])
    axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=height / width)
    values = sorted(set(np.unique(np.stack(labels))) - {0, described["labels"].get(IGNORE)})
    by_value = {
        value: COLOURS[number % len(COLOURS)] for number, value in enumerate(sorted(structures))
    }
    colours |= {structures[value]: by_value[value] for value in values if value in structures}
    for volume, line in zip(labels, ("dashed", "solid"), strict=True):
        for value in values:
            mask = volume.take(place, axis=across) == value
            if mask.any() and not mask.all():
                colour = by_value.get(int(value), GREY)
                axis.contour(mask, [0.5], colors=[colour], linestyles=line, linewidths=1.4)
    axis.set_axis_off()
    return f"slice {place + 1} of {labels[1].shape[across]}"


def _add_structures(figure: Any, colours: dict[str, str]) -> None:
    """The key below: structures in full, and which line is which."""
    from matplotlib.lines import Line2D

    key: dict[str, Any] = {
        escape_math(name_structure(n)): {"color": c, "lw": 4} for n, c in colours.items()
    }
    key |= {"reference": {"color": GREY}, "prediction": {"color": GREY, "ls": "dashed"}}
    lines = [Line2D([], [], **look) for look in key.values()]
    figure.legend(lines, list(key), loc="outside lower left", ncols=3, fontsize=8)


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


def collect_pretraining_pictures(found: Findings) -> list[Picture]:
    """Of each method the last panels of one pre-training, and the embedding of its probe."""
    pictures, shown = [], set()
    for method, record in found.pretrainings:
        if method in shown:
            continue
        shown.add(method)
        folder = found.folder.fold_folder(record.cell) / "pictures"
        panels = sorted(folder.glob("epoch_*.png"))
        last = panels[-1].stem[: len("epoch_0000")] if panels else ""
        files = [
            file for file in panels if file.stem.startswith(last) and "_views" not in file.stem
        ]
        for file in (*files, folder / EMBEDDING):
            if file.is_file():
                name = file.stem.removeprefix("probe_").replace("_", " ")
                data = file.read_bytes()
                title, caption = f"{method}: {name}", f"From the cell {record.cell.id}."
                pictures.append(Picture(f"{slug(method)}_{name}", title, caption, data, "png"))
    return pictures
