"""Counted randomness: what is drawn depends on a sample's key and a salt, on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def generator(key: Tensor, *salt: str | int) -> np.random.Generator:
    """NumPy generator of one sample, for drawing parameters on the CPU.

    Args:
        key: int64 (4,), one row of `batch["key"]`.
        salt: names the use; different salts give independent streams.

    Raises:
        ValueError: the key is not one row of integers.
    """
    return np.random.default_rng(_seed(key, salt))


def torch_generator(key: Tensor, device: torch.device | str, *salt: str | int) -> torch.Generator:
    """Torch generator of one sample on a device, for random fields too large to draw on the CPU.

    Args:
        key: int64 (4,), one row of `batch["key"]`.
        device: where the field will be drawn; CPU and GPU give different fields.
        salt: names the use; different salts give independent streams.

    Raises:
        ValueError: the key is not one row of integers.
    """
    return torch.Generator(device).manual_seed(_seed(key, salt) % 2**63)


def _seed(key: Tensor, salt: tuple[str | int, ...]) -> int:
    """128 bits that are the same on every machine, unlike Python's own `hash`."""
    if key.ndim != 1 or key.is_floating_point():
        raise ValueError(
            f"key has shape {tuple(key.shape)} and type {key.dtype}; "
            'allowed is one row of batch["key"]: int64 (4,)'
        )
    text = repr((key.tolist(), salt)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
