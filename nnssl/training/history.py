"""What is logged per epoch: terms, `history.csv`, and the change of the weights."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.common.files import atomic_path
from nnssl.modules import unet

HISTORY_FILE = "history.csv"  # in the folder of a run
STOCK_TERMS = {  # nnU-Net's name -> ours
    "train_losses": "train_loss",
    "val_losses": "val_loss",
    "mean_fg_dice": "pseudo_dice",
    "ema_fg_dice": "pseudo_dice_ema",
    "lrs": "learning_rate",
}


class History:
    """One number per key and epoch; a key may begin late (missing epochs are None)."""

    def __init__(self, values: Mapping[str, list[float | None]] | None = None) -> None:
        self.values: dict[str, list[float | None]] = {k: list(v) for k, v in (values or {}).items()}

    def log(self, epoch: int, terms: Mapping[str, float | None]) -> None:
        """Set the numbers of one epoch; what stood there or later is dropped."""
        for key in {**self.values, **terms}:
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

    def write(self, folder: str | Path) -> None:
        """Writes `history.csv`: a row per epoch, counted from 1, whole or not at all.

        What was not measured is empty. Rows of epochs that a resumed run takes again are replaced,
        since the whole file is.
        """
        rows = zip_longest(*self.values.values())
        with (
            atomic_path(Path(folder) / HISTORY_FILE) as part,
            part.open("w", encoding="utf-8", newline="") as file,
        ):
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["epoch", *self.values])
            table.writerows([number, *row] for number, row in enumerate(rows, 1))


def read_stock_terms(logging: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Our name of a term -> one number per epoch, of what nnU-Net's logger stores."""
    named = {ours: logging[key] for key, ours in STOCK_TERMS.items() if key in logging}
    classes = zip(*logging.get("dice_per_class_or_region", ()), strict=True)
    return named | {f"pseudo_dice_{n}": list(each) for n, each in enumerate(classes, 1)}


def tell_loggers(logger: Any, terms: Mapping[str, float | None], epoch: int) -> None:
    """Gives the terms of an epoch, counted from 0, to what nnU-Net logs to beside its own file.

    That is Weights & Biases where `nnUNet_wandb_enabled=1` says so; nnU-Net before 2.7.0 has none.
    """
    for further in getattr(logger, "loggers", ()):
        for key, value in terms.items():
            if value is not None:
                further.log(key, value, epoch)


class WeightChange:
    """Remembers the encoder's first weights and measures the relative change, stage by stage.

    .. math:: c_s = \\|w_s - w_s^0\\|_2 / \\|w_s^0\\|_2
    """

    def __init__(self, network: nn.Module) -> None:
        self._first = self._read_stages(network)

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """`weight_change_stage_<s>` -> c_s."""
        changes = {}
        for stage, now in self._read_stages(network).items():
            first = self._first[stage]
            change = float((now - first).norm() / first.norm().clamp_min(1e-12))
            changes[f"weight_change_stage_{stage}"] = change
        return changes

    @staticmethod
    def _read_stages(network: nn.Module) -> dict[int, Tensor]:
        return {
            number: torch.cat([p.detach().float().cpu().flatten() for p in stage])
            for number, stage in enumerate(unet.encoder_stage_parameters(network))
            if stage
        }
