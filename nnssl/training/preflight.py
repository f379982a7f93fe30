"""What is tried before the first epoch, so that nothing fails after days."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import Tensor, nn

from nnssl.config import RawConfig, find_configs, read_config
from nnssl.data.case_table import Case
from nnssl.data.sampling import Sampling
from nnssl.losses.contrastive import NoSignalError
from nnssl.nnunet.checkpoint import save_atomically
from nnssl.objectives import find_objective

TRIES = 3  # batches that may be without signal by chance
COPIES = 3  # checkpoints that lie side by side: best, latest or final, and the one being written


def dry_step(network: nn.Module, forward: Callable[[int], Mapping[str, Tensor]]) -> float:
    """One forward and backward pass that leaves no trace; returns the loss.

    Args:
        network: what is trained.
        forward: gives the terms of the first, second, ... batch.

    Raises:
        RuntimeError: the loss is not finite, or the first `TRIES` batches have no signal: nothing
            to learn from, or a loss that no weight changes.
    """
    kept = {key: value.detach().clone() for key, value in network.state_dict().items()}
    network.train()
    reason = ""
    for number in range(TRIES):
        try:
            loss = forward(number)["loss"]
        except NoSignalError as error:
            reason = str(error)
            continue
        loss.backward()
        value = float(loss.detach())
        moves = any(p.grad is not None and bool(p.grad.any()) for p in network.parameters())
        for parameter in network.parameters():
            parameter.grad = None
        network.load_state_dict(kept)
        if not math.isfinite(value):
            raise RuntimeError(
                f"Pre-flight: the loss of the first batch is {value}. Look for NaN or huge values "
                "in the preprocessed images."
            )
        if moves:
            return value
        reason = f"its loss is {value:.4g} whatever the weights are."
    raise RuntimeError(
        f"Pre-flight: the pretext task has no signal in {TRIES} batches: {reason} "
        f"{name_trainers_without_positions()}"
    )


def name_trainers_without_positions() -> str:
    """A sentence on the pre-training trainers that suit images of any kind, pictures too."""
    names = []
    for name in find_configs():
        with suppress(
            ValueError, KeyError, TypeError, AttributeError
        ):  # no trainer can be made of it
            names += [name] if _needs_no_positions(read_config(name)) else []
    return f"Trainers that need no positions in a volume: {', '.join(names)}."


def _needs_no_positions(raw: RawConfig) -> bool:
    if raw.kind != "pretrain":
        return False
    knobs = raw.sections["objective"]
    mode = (raw.sections.get("sampling") or {}).get("mode")
    return (mode or find_objective(knobs["name"], knobs).sampling) == "random"


def refuse_single_slices(cases: Sequence[Case], sampling: Sampling) -> None:
    """Raises ValueError where positions are to be drawn of images that have none: 2D pictures."""
    if sampling.structured and all(case.shape[case.axis] == 1 for case in cases):
        raise ValueError(
            f"sampling.mode: found {sampling.mode!r}, but all {len(cases)} images are a single "
            f"slice along array axis {cases[0].axis}: pictures have no position in a volume. "
            f"{name_trainers_without_positions()} With another objective than contrast, "
            "sampling.mode: random would do too."
        )


def check_disk(folder: Path, checkpoint_bytes: int) -> None:
    """Raise RuntimeError unless the checkpoints of a run fit on the disk."""
    free, needed = shutil.disk_usage(folder).free, COPIES * checkpoint_bytes
    if free < needed:
        raise RuntimeError(
            f"Pre-flight: {folder} has {free / 2**20:.0f} MiB free, the run's checkpoints need "
            f"{needed / 2**20:.0f} MiB. Free some space or set another nnUNet_results."
        )


def check_export(folder: Path, checkpoint: dict[str, Any], planned: nn.Module) -> None:
    """Write a checkpoint, read it back with nnU-Net's own loader, and compare every tensor.

    `planned` is a fresh network as the stock trainer builds it.

    Raises:
        RuntimeError: if a tensor does not come back.
    """
    file = folder / f"checkpoint_preflight_{uuid4().hex}.pth"
    try:
        save_atomically(checkpoint, file)
        load_pretrained_weights(planned, str(file), verbose=False)
    finally:
        file.unlink(missing_ok=True)
    loaded: Mapping[str, Any] = planned.state_dict()
    for key, value in checkpoint["network_weights"].items():
        if ".seg_layers." not in key and not torch.equal(loaded[key].cpu(), value):
            raise RuntimeError(f"Pre-flight: {key} in {file} differs from the network's weights")
