"""Dice table and figure of the quickstart: `quickstart_report.py WORK`.

Reads what stock nnU-Net left there: `validation/summary.json` of both trainings, the logs in the
checkpoints, and the predictions of `nnUNetv2_predict`.
"""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnssl.cli.command import table
from nnssl.common.files import read_json
from nnssl.convert.volumes import be_quiet
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.nnunet.paths import (
    DATASET_FILE,
    FINAL,
    SUMMARY,
    TRAINING_IMAGES,
    TRAINING_LABELS,
    find_fold_folders,
)

PRETRAINED, SCRATCH = "pre-trained", "scratch"
TRAINERS = {SCRATCH: "nnSSLScratchTrainer", PRETRAINED: "nnSSLFinetuneTrainer"}
PREDICTED = {SCRATCH: "predicted_scratch", PRETRAINED: "predicted_pretrained"}
COLOURS = {SCRATCH: "tab:orange", PRETRAINED: "tab:blue"}
STRUCTURE_COLOURS = ("gold", "lime", "red", "cyan", "magenta")
MARGIN = 12  # voxels around the labels in an overlay


class Quickstart:
    """The folder of a quickstart."""

    def __init__(self, work: Path) -> None:
        self.work = work
        (self.raw,) = (work / "raw").glob("Dataset*")
        self.synthetic = (work / "origin").read_text().strip() == "synthetic"
        labels = read_json(self.raw / DATASET_FILE)["labels"]
        self.structures: dict[str, int] = {name: v for name, v in labels.items() if v != 0}

    @cached_property
    def summaries(self) -> dict[str, Any]:
        """Both arms' validation by nnU-Net."""
        return {arm: read_json(self.fold(name) / SUMMARY) for arm, name in TRAINERS.items()}

    def fold(self, trainer: str) -> Path:
        """Output folder of fold 0."""
        dataset = self.work / "results" / self.raw.name
        (folder,) = find_fold_folders(dataset, trainer, configuration="2d", fold=0)
        return folder

    def checkpoint(self, trainer: str) -> dict[str, Any]:
        return read_checkpoint(self.fold(trainer) / FINAL)


def tabulate_dice(quickstart: Quickstart) -> str:
    """Dice per structure of both runs, from nnU-Net's own validation."""
    found = quickstart.summaries.values()
    values = {
        name: [summary["mean"][str(value)]["Dice"] for summary in found]
        for name, value in quickstart.structures.items()
    }
    values["mean"] = [summary["foreground_mean"]["Dice"] for summary in found]
    rows = [(name, f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}") for name, (a, b) in values.items()]
    return table(("Dice", *TRAINERS, "difference"), rows)


def describe_result(quickstart: Quickstart) -> str:
    """What the numbers are, and what they are not."""
    labelled = quickstart.checkpoint(TRAINERS[PRETRAINED])["nnssl"]["labels"]
    data = "SYNTHETIC images" if quickstart.synthetic else "the real images"
    return (
        f"Fold 0 of {data}: {len(quickstart.summaries[PRETRAINED]['metric_per_case'])} validation "
        f"volumes, labelled patients: {labelled['number_of_patients']} "
        f"({labelled['number_of_volumes']} volumes), both runs with the same schedule and seed.\n"
        "This is ONE run of a small plan with a short schedule. It shows that the road works; the "
        "difference may have either sign and says nothing about significance."
    )


def draw(quickstart: Quickstart) -> Figure:
    """Learning curves above, overlays below."""
    cases = sorted(path.name for path in (quickstart.work / "cases").glob("*_0000.nii.gz"))
    figure = Figure(figsize=(13, 13), layout="constrained")
    (curves,), (overlays,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 2.6))
    draw_curves(quickstart, *curves.subplots(1, 3))
    grid = overlays.subplots(3, len(cases), squeeze=False)
    for column, case in zip(grid.T, cases, strict=True):
        draw_case(quickstart, case.removesuffix("_0000.nii.gz"), column)
    kind = "SYNTHETIC data" if quickstart.synthetic else "real data"
    figure.suptitle(f"nnSSL quickstart, {kind}, one run: shows the road, proves nothing")
    return figure


def draw_curves(quickstart: Quickstart, loss: Axes, accuracy: Axes, dice: Axes) -> None:
    """Loss and accuracy of the pre-training, quick validation Dice of both fine-tunings."""
    weights = quickstart.checkpoint(TRAINERS[PRETRAINED])["nnssl"]["weights"]
    history = read_checkpoint(Path(weights["source"]))["nnssl"]["history"]
    for axis, keys in (
        (loss, ("train_loss", "val_loss", "collapse_loss")),
        (accuracy, ("accuracy", "val_accuracy")),
    ):
        for key in keys:
            axis.plot([np.nan if v is None else v for v in history.get(key, [])], label=key)
    for arm, trainer in TRAINERS.items():
        values = quickstart.checkpoint(trainer)["logging"]["mean_fg_dice"]
        dice.plot(values, label=arm, color=COLOURS[arm])
    for axis, title in (
        (loss, "pre-training: loss"),
        (accuracy, "pre-training: accuracy"),
        (dice, "fine-tuning: Dice (quick estimate)"),
    ):
        axis.set(title=title, xlabel="epoch")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)


def draw_case(quickstart: Quickstart, case: str, column: NDArray[Any]) -> None:
    """Truth, scratch and pre-trained on the middle slice of the labels."""
    image = read_volume(quickstart.raw / TRAINING_IMAGES / f"{case}_0000.nii.gz")
    truth = read_volume(quickstart.raw / TRAINING_LABELS / f"{case}.nii.gz")
    predicted = {
        arm: read_volume(quickstart.work / folder / f"{case}.nii.gz")
        for arm, folder in PREDICTED.items()
    }
    slices = np.flatnonzero((truth > 0).any((1, 2)))
    at = int(slices[len(slices) // 2])
    ranges = [np.flatnonzero((truth[at] > 0).any(axis)) for axis in (1, 0)]
    window = tuple(slice(max(0, int(r[0]) - MARGIN), int(r[-1]) + MARGIN + 1) for r in ranges)
    values = list(quickstart.structures.values())
    for axis, (name, labels) in zip(column, {"truth": truth, **predicted}.items(), strict=True):
        shown = image[at][window]
        axis.imshow(shown, cmap="gray", vmax=np.percentile(shown, 99.5))
        for value, colour in zip(values, STRUCTURE_COLOURS, strict=False):
            mask = labels[at][window] == value
            if mask.any():
                axis.contour(mask, levels=[0.5], colors=colour, linewidths=1.2)
        axis.axis("off")
        pairs = [(truth == value, labels == value) for value in values]
        dice = np.mean([2 * (a & b).sum() / max(1, a.sum() + b.sum()) for a, b in pairs])
        score = "" if name == "truth" else f", Dice {dice:.2f}"
        axis.set_title(f"{name}{score}\n{case}, slice {at}", fontsize=8)


def read_volume(path: Path) -> NDArray[Any]:
    """(Z, Y, X)."""
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def main(work: Path) -> None:
    """Prints the table, writes `quickstart.txt` and `quickstart.png`."""
    be_quiet()
    quickstart = Quickstart(work)
    text = f"{tabulate_dice(quickstart)}\n\n{describe_result(quickstart)}\n"
    (work / "quickstart.txt").write_text(text)
    draw(quickstart).savefig(work / "quickstart.png", dpi=100)
    print(f"{text}\n{work / 'quickstart.txt'}\n{work / 'quickstart.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
