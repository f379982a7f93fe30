"""Counted randomness: what is drawn depends on a sample's key and a salt, on nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

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
    """The same of torch, on the device where a field will be drawn; CPU and GPU differ."""
    return torch.Generator(device).manual_seed(_seed(key, salt) % 2**63)


def draw_fields(
    draw: Callable[..., Tensor],
    keys: Tensor,
    size: Sequence[int],
    device: torch.device,
    *salt: str | int,
) -> Tensor:
    """A random field of each sample, drawn on the device, (n, *size).

    Args:
        draw: `torch.randn` or one that is called like it.
        keys: int64 (n, 4).
        size: of one field.
        device: where the fields are drawn.
        salt: names the use.
    """
    generators = [torch_generator(key, device, *salt) for key in keys]
    return torch.stack([draw(tuple(size), generator=g, device=device) for g in generators])


def _seed(key: Tensor, salt: tuple[str | int, ...]) -> int:
    """128 bits that are the same on every machine, unlike Python's own `hash`."""
    if key.ndim != 1 or key.is_floating_point():
        raise ValueError(
            f"key has shape {tuple(key.shape)} and type {key.dtype}; "
            'allowed is one row of batch["key"]: int64 (4,)'
        )
    text = repr((key.tolist(), salt)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
