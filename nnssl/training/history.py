"""What was logged per epoch, and its picture `progress.png`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def _nmi(key: str) -> tuple[str, ...]:
    """The run's own clusters, and k-means on the encoders."""
    return (f"{key}_clusters", key, f"{key}_random", f"{key}_reference")


SIAMESE = ("global_loss", "local_loss", "mismatched_loss")
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "loss",
        ("train_loss", "val_loss", "collapse_loss", "mean_image_loss", "identity_loss"),
    ),
    ("accuracy", ("accuracy", "val_accuracy")),
    ("siamese loss (mismatched: views of other samples)", SIAMESE),
    ("alignment and uniformity", ("alignment", "uniformity")),
    ("embedding: standard deviation", ("embedding_std",)),
    ("embedding: effective rank", ("effective_rank",)),
    ("pairs per anchor", ("positives", "negatives")),
    ("probe: Dice of frozen features", ("probe_dice", "probe_dice_random", "probe_dice_reference")),
    (
        "probe: error of the axial position",
        (
            "probe_position_error",
            "probe_position_error_random",
            "probe_position_error_reference",
            "probe_position_chance",
        ),
    ),
    (
        "probe: effective rank of slices",
        (
            "probe_effective_rank",
            "probe_effective_rank_random",
            "probe_effective_rank_reference",
        ),
    ),
    ("probe: NMI of clusters and labels", _nmi("probe_nmi")),
    ("probe: the same, classes balanced", _nmi("probe_nmi_balanced")),
    ("learning rate", ("learning_rate",)),
    ("images per second", ("images_per_second",)),
    ("seconds per epoch", ("epoch_seconds", "seconds_waited", "probe_seconds")),
    ("seconds per step", ("seconds_per_step",)),
    ("steps skipped so far (loss not finite)", ("skipped_steps",)),
)


class History:
    """One number per key and epoch; a key may begin late (missing epochs are None)."""

    def __init__(self, values: Mapping[str, list[float | None]] | None = None) -> None:
        self.values: dict[str, list[float | None]] = {k: list(v) for k, v in (values or {}).items()}

    def log(self, epoch: int, terms: Mapping[str, float | None]) -> None:
        """Set the numbers of one epoch; what stood there or later is dropped."""
        for key in set(self.values) | set(terms):
            column = self.values.setdefault(key, [])[:epoch]
            column += [None] * (epoch - len(column))
            value = terms.get(key)
            self.values[key] = [*column, None if value is None else float(value)]

    def add(self, epoch: int, terms: Mapping[str, float | None]) -> None:
        """Further numbers of an epoch that is logged already."""
        known = {key: column[epoch] for key, column in self.values.items() if len(column) > epoch}
        self.log(epoch, {**known, **terms})

    def last(self, key: str) -> float | None:
        column = self.values.get(key, [])
        return column[-1] if column else None

    def plot(self, file: Path) -> None:
        """Draw every known panel, and the weight change per stage; other terms get their own."""
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot as plt

        panels = [(title, [k for k in keys if k in self.values]) for title, keys in self._panels()]
        panels = [(title, keys) for title, keys in panels if keys]
        rows = (len(panels) + 2) // 3
        figure, axes = plt.subplots(rows, 3, figsize=(15, 3.2 * rows), squeeze=False)
        for axis, (title, keys) in zip(axes.flat, panels, strict=False):
            for key in keys:
                axis.plot(*self._line(key), label=key, marker="." if self._sparse(key) else None)
            axis.set(title=title, xlabel="epoch")
            axis.legend(fontsize=7)
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        figure.tight_layout()
        temporary = file.with_suffix(".tmp.png")
        figure.savefig(temporary, dpi=80)
        plt.close(figure)
        os.replace(temporary, file)

    def _line(self, key: str) -> tuple[list[int], list[float]]:
        """Epochs and values; what is not measured every epoch is joined over the gaps."""
        column = [float("nan") if v is None else v for v in self.values[key]]
        if not self._sparse(key):
            return list(range(len(column))), column
        epochs = [epoch for epoch, v in enumerate(self.values[key]) if v is not None]
        return epochs, [column[epoch] for epoch in epochs]

    @staticmethod
    def _sparse(key: str) -> bool:
        return key.startswith("probe_")

    def _panels(self) -> list[tuple[str, tuple[str, ...]]]:
        known = {key for _, keys in PANELS for key in keys}
        change = tuple(sorted(k for k in self.values if k.startswith("weight_change")))
        other = [(k, (k,)) for k in sorted(self.values) if k not in known and k not in change]
        return [*PANELS, ("relative change of the encoder's weights", change), *other]
