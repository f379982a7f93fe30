"""nnU-Net's own training batches, with every random number drawn from the step."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from nnssl.common.environment import set_variables

STREAMS = {"train": 0, "validation": 1, "step": 2, "network": 3}


@dataclass(frozen=True)
class SeededBatches:
    """Step -> batch of nnU-Net's data loader.

    The loader and its transforms draw from the global generators of NumPy, torch and Python; all
    three are seeded before each batch, so that it depends on seed, stream, rank and step only.

    Attributes:
        loader: an `nnUNetDataLoader`.
        seed: of the run.
        stream: `train` or `validation`.
        rank: number of the process.
    """

    loader: Any
    seed: int
    stream: Literal["train", "validation"]
    rank: int = 0

    def __call__(self, step: int) -> dict[str, Any]:
        seed_everything(self.seed, self.stream, self.rank, step)
        return dict(self.loader.generate_train_batch())


def seed_everything(seed: int, stream: str, *numbers: int) -> None:
    """Seeds the global generators of NumPy, torch and Python; streams are independent."""
    state = np.random.SeedSequence((seed, STREAMS[stream], *numbers)).generate_state(3)
    np.random.seed(state[0])
    torch.manual_seed(int(state[1]))
    random.seed(int(state[2]))


def single_threaded_augmentation() -> AbstractContextManager[None]:
    """Makes nnU-Net build its loaders without background processes; ours take their place."""
    return set_variables({"nnUNet_n_proc_DA": "0"})
