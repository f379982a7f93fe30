"""The networks that are probed: the planned one, random or with the weights of a checkpoint."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor, nn

from nnssl.finetuning.weights import load, match
from nnssl.modules.unet import Trained, trained_keys
from nnssl.nnunet.planned_network import build_network
from nnssl.probe.fold import ProbeFold

RANDOM_SEED = 20_000_003
OUTPUTS = 2  # of the segmentation layers, which are never read


@contextmanager
def isolate_generators(device: torch.device, seed: int = RANDOM_SEED) -> Iterator[None]:
    """Random numbers drawn inside depend on the seed only, and change nothing outside."""
    python, array = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


def read_initial_state(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """Seed and outputs of the network that a run started from.

    A checkpoint that is no pre-training of nnSSL does not tell: then they are the probe's own.
    """
    config = checkpoint.get("nnssl", {}).get("config", {})
    seed = config.get("sections", {}).get("training", {}).get("seed")
    if seed is None:
        return RANDOM_SEED, OUTPUTS
    return seed, count_outputs(checkpoint["network_weights"])


def count_outputs(weights: Mapping[str, Tensor]) -> int:
    """Outputs of the segmentation layers of a planned U-Net."""
    return len(weights["decoder.seg_layers.0.weight"])


def build_random_network(
    fold: ProbeFold, device: torch.device, outputs: int = OUTPUTS
) -> nn.Module:
    """The planned U-Net as nnU-Net initialises it; call it inside `isolate_generators`.

    With the seed and the number of outputs of a pre-training run it is as that run began.
    """
    manager = fold.configuration_manager
    channels = determine_num_input_channels(fold.manager, manager, fold.dataset_json)
    return build_network(manager, channels, outputs).to(device)


def build_network_with(
    weights: Mapping[str, Tensor], fold: ProbeFold, device: torch.device, name: str
) -> nn.Module:
    """The planned U-Net with the encoder of a state dict.

    Raises:
        ValueError: the encoder does not fit these plans.
    """
    network = build_random_network(fold, torch.device("cpu"))
    transfer = match(weights, network.state_dict(), trained_keys(network, Trained()))
    if transfer.share < 1:
        raise ValueError(
            f"{name}: only {transfer.share:.1%} of the encoder's parameters fit plans "
            f"{fold.manager.plans_name}, configuration {fold.configuration}; the probe allows "
            f"checkpoints of these plans only.\n{transfer.table()}"
        )
    load(network, transfer)
    return network.to(device)
