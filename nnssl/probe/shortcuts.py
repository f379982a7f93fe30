"""Is a pretext task cheated? Its accuracy on images that show nothing must be that of guessing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from nnssl.views.randomness import draw_fields

BATCHES = 8
DEVIATIONS = 3  # of the accuracy of guessing, beyond which it is no longer chance

Step = Callable[[dict[str, Any]], Mapping[str, float]]


def audit(step: Step, batches: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Asks the task about noise with the spectrum of the images, and about images of one value.

    Noise shows what can be told from textures, resolution and lines that cross the border of
    pieces; flat images what padding, interpolation and the changes of views give away.

    Args:
        step: from a loader's batch to the terms of a step; `accuracy` and `chance` are read.
        batches: of real images.

    Returns:
        `probe_noise_accuracy`, `probe_flat_accuracy`, and `probe_accuracy_limit`, the accuracy
        that guessing stays under: three standard deviations above chance, for as many answers as
        there are images.
    """
    kept, found = list(batches), {}
    images = sum(len(batch["image"]) for batch in kept)
    for name, make in {"noise": make_noise, "flat": make_flat}.items():
        terms = [step({**batch, "image": make(batch["image"], batch["key"])}) for batch in kept]
        found[f"probe_{name}_accuracy"] = sum(t["accuracy"] for t in terms) / len(terms)
    chance = terms[0]["chance"]
    spread = (chance * (1 - chance) / images) ** 0.5
    return {**found, "probe_accuracy_limit": min(1.0, chance + DEVIATIONS * spread)}


def warn(found: Mapping[str, float]) -> str:
    """What to say of the result of an audit; empty where the task passed."""
    limit = found["probe_accuracy_limit"]
    kinds = {"noise": "noise with the spectrum of the images", "flat": "images of one value"}
    cheated = [
        f"{accuracy:.3f} on {text}"
        for name, text in kinds.items()
        if (accuracy := found[f"probe_{name}_accuracy"]) > limit
    ]
    if not cheated:
        return ""
    return (
        f"the pretext task can be solved without anatomy: its accuracy is {' and '.join(cheated)}, "
        f"and guessing stays below {limit:.3f}. What it learns from that is of no use. Look at the "
        "pieces in the folder pictures; a larger gap or jitter between pieces often helps."
    )


def make_noise(image: Tensor, keys: Tensor) -> Tensor:
    """White noise with the mean power spectrum of the images, and mean and deviation of each."""
    axes = tuple(range(2, image.ndim))
    size = image.shape[2:]
    mean, deviation = image.mean(axes, keepdim=True), image.std(axes, keepdim=True)
    power = torch.fft.rfftn(image - mean, dim=axes).abs().square().mean(0)
    white = draw_fields(torch.randn, keys, image.shape[1:], image.device, "shortcuts")
    noise = torch.fft.irfftn(torch.fft.rfftn(white, dim=axes) * power.sqrt(), s=size, dim=axes)
    scale = noise.std(axes, keepdim=True).clamp_min(1e-12)
    return (noise - noise.mean(axes, keepdim=True)) / scale * deviation + mean


def make_flat(image: Tensor, keys: Tensor) -> Tensor:
    """Images that have their own mean everywhere."""
    return image.mean(tuple(range(2, image.ndim)), keepdim=True).expand_as(image).contiguous()
