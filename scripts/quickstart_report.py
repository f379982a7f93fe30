"""Dice table and figure of the quickstart: `quickstart_report.py WORK`.

Reads what stock nnU-Net left there: `validation/summary.json` of both trainings, the logs in the
checkpoints, and the predictions of `nnUNetv2_predict`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import numpy as np
import SimpleITK as sitk  # noqa: N813
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from nnssl.cli.table import table
from nnssl.common.files import read_json
from nnssl.convert.volumes import be_quiet
from nnssl.nnunet.checkpoint import read_checkpoint

PRETRAINED, SCRATCH = "pre-trained", "scratch"
TRAINERS = {SCRATCH: "nnSSLScratchTrainer", PRETRAINED: "nnSSLFinetuneTrainer"}
PREDICTED = {SCRATCH: "predicted_scratch", PRETRAINED: "predicted_pretrained"}
COLOURS = {SCRATCH: "tab:orange", PRETRAINED: "tab:blue"}
STRUCTURE_COLOURS = ("gold", "lime", "red", "cyan", "magenta")
MARGIN = 12  # voxels around the labels in an overlay


@dataclass(frozen=True)
class Quickstart:
    """The folder of a quickstart."""

    work: Path

    @cached_property
    def dataset(self) -> str:
        (folder,) = (self.work / "raw").glob("Dataset*")
        return folder.name

    @cached_property
    def synthetic(self) -> bool:
        return (self.work / "origin").read_text().strip() == "synthetic"

    @cached_property
    def structures(self) -> dict[str, int]:
        labels = read_json(self.work / "raw" / self.dataset / "dataset.json")["labels"]
        return {name: value for name, value in labels.items() if value != 0}

    def fold(self, trainer: str) -> Path:
        """Output folder of fold 0."""
        (folder,) = (self.work / "results" / self.dataset).glob(f"{trainer}__*__2d/fold_0")
        return folder

    def checkpoint(self, trainer: str) -> dict[str, Any]:
        return read_checkpoint(self.fold(trainer) / "checkpoint_final.pth")

    def image(self, *parts: str) -> NDArray[Any]:
        """An image of (Z, Y, X)."""
        path = self.work.joinpath(*parts)
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def dice_table(quickstart: Quickstart) -> str:
    """Dice per structure of both runs, from nnU-Net's own validation."""
    summaries = {
        arm: read_json(quickstart.fold(trainer) / "validation" / "summary.json")
        for arm, trainer in TRAINERS.items()
    }
    rows = [
        _row(name, *(summary["mean"][str(value)]["Dice"] for summary in summaries.values()))
        for name, value in quickstart.structures.items()
    ]
    means = (summary["foreground_mean"]["Dice"] for summary in summaries.values())
    return table(("Dice", *summaries, "difference"), [*rows, _row("mean", *means)])


def _row(name: str, scratch: float, pretrained: float) -> tuple[str, ...]:
    return (name, f"{scratch:.3f}", f"{pretrained:.3f}", f"{pretrained - scratch:+.3f}")


def sentences(quickstart: Quickstart) -> str:
    """What the numbers are, and what they are not."""
    own = quickstart.checkpoint(TRAINERS[PRETRAINED])["nnssl"]
    summary = read_json(quickstart.fold(TRAINERS[PRETRAINED]) / "validation" / "summary.json")
    labelled = own["labels"]
    data = "SYNTHETIC images" if quickstart.synthetic else "the real images"
    return (
        f"Fold 0 of {data}: {len(summary['metric_per_case'])} validation volumes, "
        f"{labelled['number_of_patients']} labelled patients "
        f"({labelled['number_of_volumes']} volumes), both runs with the same schedule and seed.\n"
        "This is ONE run of a small plan with a short schedule. It shows that the road works; the "
        "difference may have either sign and says nothing about significance."
    )


def draw(quickstart: Quickstart, file: Path) -> None:
    """One figure: learning curves above, overlays below."""
    cases = sorted(path.name for path in (quickstart.work / "cases").glob("*_0000.nii.gz"))
    figure = plt.figure(figsize=(13, 13), layout="constrained")
    (curves,), (overlays,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 2.6))
    draw_curves(quickstart, *curves.subplots(1, 3))
    grid = overlays.subplots(3, len(cases), squeeze=False)
    for column, case in zip(grid.T, cases, strict=True):
        draw_case(quickstart, case.removesuffix("_0000.nii.gz"), column)
    kind = "SYNTHETIC data" if quickstart.synthetic else "real data"
    figure.suptitle(f"nnSSL quickstart, {kind}, one run: shows the road, proves nothing")
    figure.savefig(file, dpi=100)
    plt.close(figure)


def draw_curves(quickstart: Quickstart, loss: Axes, accuracy: Axes, dice: Axes) -> None:
    """Loss and accuracy of the pre-training, quick validation Dice of both fine-tunings."""
    history = quickstart.checkpoint("nnSSLContrastiveTrainer")["nnssl"]["history"]
    for axis, keys in (
        (loss, ("train_loss", "val_loss", "collapse_loss")),
        (accuracy, ("accuracy", "val_accuracy")),
    ):
        for key in keys:
            axis.plot([np.nan if v is None else v for v in history.get(key, [])], label=key)
    loss.set(title="pre-training: loss", xlabel="epoch")
    accuracy.set(title="pre-training: contrastive accuracy", xlabel="epoch")
    for arm, trainer in TRAINERS.items():
        values = quickstart.checkpoint(trainer)["logging"]["mean_fg_dice"]
        dice.plot(values, label=arm, color=COLOURS[arm])
    dice.set(title="fine-tuning: Dice (quick estimate)", xlabel="epoch")
    for axis in (loss, accuracy, dice):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)


def draw_case(quickstart: Quickstart, case: str, column: NDArray[Any]) -> None:
    """Truth, scratch and pre-trained on the middle slice of the labels."""
    raw = ("raw", quickstart.dataset)
    image = quickstart.image(*raw, "imagesTr", f"{case}_0000.nii.gz")
    truth = quickstart.image(*raw, "labelsTr", f"{case}.nii.gz")
    labelled = np.flatnonzero((truth > 0).any((1, 2)))
    at = int(labelled[len(labelled) // 2])
    window = _window(truth[at] > 0)
    arms = {arm: quickstart.image(folder, f"{case}.nii.gz") for arm, folder in PREDICTED.items()}
    for axis, (name, labels) in zip(column, {"truth": truth, **arms}.items(), strict=True):
        _overlay(axis, image[at][window], labels[at][window], quickstart.structures)
        dice = (
            "" if name == "truth" else f", Dice {_dice(truth, labels, quickstart.structures):.2f}"
        )
        axis.set_title(f"{name}{dice}\n{case}, slice {at}", fontsize=8)


def _window(foreground: NDArray[np.bool_]) -> tuple[slice, slice]:
    ranges = [np.flatnonzero(foreground.any(axis)) for axis in (1, 0)]
    y, x = (slice(max(0, int(r[0]) - MARGIN), int(r[-1]) + MARGIN + 1) for r in ranges)
    return y, x


def _overlay(
    axis: Axes, image: NDArray[Any], labels: NDArray[Any], structures: dict[str, int]
) -> None:
    axis.imshow(image, cmap="gray", vmax=np.percentile(image, 99.5))
    for value, colour in zip(structures.values(), STRUCTURE_COLOURS, strict=False):
        if (labels == value).any():
            axis.contour(labels == value, levels=[0.5], colors=colour, linewidths=1.2)
    axis.axis("off")


def _dice(truth: NDArray[Any], labels: NDArray[Any], structures: dict[str, int]) -> float:
    """Mean over structures of 2 |A and B| / (|A| + |B|) in the whole volume."""
    pairs = [(truth == value, labels == value) for value in structures.values()]
    return float(np.mean([2 * (a & b).sum() / max(1, a.sum() + b.sum()) for a, b in pairs]))


def main(work: Path) -> None:
    """Prints the table, writes `quickstart.txt` and `quickstart.png`."""
    be_quiet()
    quickstart = Quickstart(work)
    text = f"{dice_table(quickstart)}\n\n{sentences(quickstart)}\n"
    (work / "quickstart.txt").write_text(text)
    draw(quickstart, work / "quickstart.png")
    print(f"{text}\n{work / 'quickstart.txt'}\n{work / 'quickstart.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
