"""What is logged per epoch: terms, the change of the weights, and the picture `progress.png`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nnssl.common.files import atomic_path
from nnssl.modules import unet


def _encoders(key: str) -> tuple[str, ...]:
    """A term of the run's encoder, of a random one and of the reference."""
    return key, f"{key}_random", f"{key}_reference"


# Panels of every run: title -> terms. A validated term `val_x` is drawn beside x; what stands in no
# panel gets one of its own.
LOSS = {"loss": ("train_loss", "val_loss", "collapse_loss")}
PANELS = {
    "probe: Dice of frozen features": _encoders("probe_dice"),
    "probe: error of the axial position": (
        *_encoders("probe_position_error"),
        "probe_position_chance",
    ),
    "probe: effective rank of slices": _encoders("probe_effective_rank"),
    "probe: NMI of clusters and labels": ("probe_nmi_clusters", *_encoders("probe_nmi")),
    "probe: the same, classes balanced": (
        "probe_nmi_balanced_clusters",
        *_encoders("probe_nmi_balanced"),
    ),
    "probe: accuracy where nothing is to be seen": (
        "probe_noise_accuracy",
        "probe_flat_accuracy",
        "probe_accuracy_limit",
    ),
    "learning rate": ("learning_rate",),
    "images per second": ("images_per_second",),
    "seconds per epoch": ("epoch_seconds", "seconds_waited", "probe_seconds"),
    "seconds per step": ("seconds_per_step",),
    "steps skipped so far (loss not finite)": ("skipped_steps",),
}


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

    def plot(self, file: Path, panels_of_objective: Mapping[str, tuple[str, ...]]) -> None:
        """Draw the panels of the objective and those of every run."""
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot as plt

        panels = self.find_panels(panels_of_objective)
        rows = (len(panels) + 2) // 3
        figure, axes = plt.subplots(rows, 3, figsize=(15, 3.2 * rows), squeeze=False)
        for axis, (title, keys) in zip(axes.flat, panels.items(), strict=False):
            for key in keys:
                axis.plot(
                    *self._find_points(key), label=key, marker="." if self._is_sparse(key) else None
                )
            axis.set(title=title, xlabel="epoch")
            axis.legend(fontsize=7)
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        figure.tight_layout()
        with atomic_path(file) as part:
            figure.savefig(part, dpi=80)
        plt.close(figure)

    def _find_points(self, key: str) -> tuple[list[int], list[float]]:
        """Epochs and values; what is not measured every epoch is joined over the gaps."""
        column = [float("nan") if v is None else v for v in self.values[key]]
        if not self._is_sparse(key):
            return list(range(len(column))), column
        epochs = [epoch for epoch, v in enumerate(self.values[key]) if v is not None]
        return epochs, [column[epoch] for epoch in epochs]

    @staticmethod
    def _is_sparse(key: str) -> bool:
        return key.startswith("probe_")

    def find_panels(self, of_objective: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
        """Title -> the terms that there are; every term is in one panel."""
        change = tuple(sorted(k for k in self.values if k.startswith("weight_change")))
        common = {**PANELS, "relative change of the encoder's weights": change}
        first = {**LOSS, **of_objective, "loss": (*LOSS["loss"], *of_objective.get("loss", ()))}
        grouped = {key for keys in {**first, **common}.values() for key in keys}
        beside = {f"val_{key}" for key in self.values}
        alone = {key: (key,) for key in sorted({*self.values} - grouped - beside)}
        return {
            title: found
            for title, keys in {**first, **alone, **common}.items()
            if (found := [k for key in keys for k in (key, f"val_{key}") if k in self.values])
        }


class WeightChange:
    """Remembers the encoder's first weights and measures the relative change, stage by stage.

    .. math:: c_s = \\|w_s - w_s^0\\|_2 / \\|w_s^0\\|_2
    """

    def __init__(self, network: nn.Module) -> None:
        self._first = self._read_stages(network)

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """`weight_change_stage_<s>` -> c_s."""
        now = self._read_stages(network)
        return {
            f"weight_change_stage_{s}": float((new - old).norm() / old.norm().clamp_min(1e-12))
            for s, (new, old) in enumerate(zip(now, self._first, strict=True))
        }

    @staticmethod
    def _read_stages(network: nn.Module) -> list[Tensor]:
        return [
            torch.cat([p.detach().float().cpu().flatten() for p in stage])
            for stage in unet.encoder_stage_parameters(network)
        ]
