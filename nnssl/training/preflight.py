"""What is tried before the first epoch, so that nothing fails after days."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import Tensor, nn

from nnssl.nnunet.checkpoint import save_atomically

COPIES = 3  # checkpoints that lie side by side: best, latest or final, and the one being written


def dry_step(network: nn.Module, forward: Callable[[], Mapping[str, Tensor]]) -> float:
    """One forward and backward pass that leaves no trace; returns the loss.

    Raises:
        RuntimeError: if the loss is not finite.
    """
    kept = {key: value.detach().clone() for key, value in network.state_dict().items()}
    network.train()
    loss = forward()["loss"]
    loss.backward()
    for parameter in network.parameters():
        parameter.grad = None
    network.load_state_dict(kept)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise RuntimeError(
            f"Pre-flight: the loss of the first batch is {value}. Look for NaN or huge values in "
            "the preprocessed images."
        )
    return value


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
