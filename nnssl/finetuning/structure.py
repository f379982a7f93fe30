"""What a state dict says of its U-Net: architecture, stages, features, channels, kernels."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from nnssl.finetuning.names import is_residual, name_once

_STAGE = re.compile(
    r"encoder\.stages\.(\d+)\."
    r"(?:(?:blocks\.\d+\.conv1|\d+\.convs\.\d+)\.conv|layer\d\.\d+\.conv3|conv1)\.weight"
)
_STEMS = ("encoder.stem.convs.0.conv.weight", "encoder.stages.1.conv1.weight")
_FINEST = 32  # features at full resolution behind a ResNet, where no decoder shows them
_LEVEL = re.compile(r"decoder\.stages\.(\d+)\.convs\.\d+\.conv\.weight")
_OUTPUT = re.compile(r"decoder\.seg_layers\.\d+\.weight")


@dataclass(frozen=True)
class Structure:
    """A U-Net as far as its weights show it.

    Attributes:
        architecture: name of its class.
        dimension: 2 or 3.
        channels: input channels.
        features: of each encoder stage.
        blocks: convolutions (plain) or blocks of each encoder stage.
        kernels: of each encoder stage (behind a ResNet those of the decoder).
        strides: of each encoder stage, read from the decoder's transposed convolutions; where there
            is none, 2 along every axis from the second stage on.
        levels: convolutions of each decoder stage, from the bottleneck upwards.
        outputs: of the segmentation layers; None: there are none.
        parameters: each counted once.
    """

    architecture: str
    dimension: int
    channels: int
    features: tuple[int, ...]
    blocks: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    levels: tuple[int, ...]
    outputs: int | None
    parameters: int


def describe(state: Mapping[str, Tensor]) -> Structure | None:
    """The structure of a U-Net; None where the names are no U-Net's, or no stages follow 0."""
    weights = name_once(state)
    stages: dict[int, list[Tensor]] = {}
    for key, tensor in weights.items():
        if (found := _STAGE.fullmatch(key)) and tensor.ndim in (4, 5):
            stages.setdefault(int(found[1]), []).append(tensor)
    resnet = _STEMS[1] in weights
    if sorted(stages) != list(range(resnet, len(stages) + resnet)) or not stages:
        return None
    ordered = [stages[number] for number in sorted(stages)]
    first = next((weights[name] for name in _STEMS if name in weights), ordered[0][0])
    levels = Counter(int(m[1]) for key in weights if (m := _LEVEL.fullmatch(key)))
    if first.ndim not in (4, 5):
        return None
    outputs = next((len(t) for k, t in weights.items() if _OUTPUT.fullmatch(k) and t.ndim), None)
    residual = "ResidualEncoderUNet" if is_residual(weights) else "PlainConvUNet"
    features = [len(each[-1]) for each in ordered]
    kernels = [tuple(each[0].shape[2:]) for each in ordered]
    if resnet:
        finest = weights.get(f"decoder.seg_layers.{len(features) - 1}.weight")
        features = [_FINEST if finest is None else math.prod(finest.shape[1:]), *features]
        kernels = [(3, 3)] * len(features)
    return Structure(
        architecture="ResNetUNet" if resnet else residual,
        dimension=first.ndim - 2,
        channels=int(first.shape[1]),
        features=tuple(features),
        blocks=(*[1] * resnet, *map(len, ordered)),
        kernels=tuple(kernels),
        strides=_find_strides(weights, len(features), first.ndim - 2),
        levels=tuple(levels[number] for number in sorted(levels)),
        outputs=outputs,
        parameters=sum(tensor.numel() for tensor in weights.values()),
    )


def _find_strides(
    weights: Mapping[str, Tensor], stages: int, dimension: int
) -> tuple[tuple[int, ...], ...]:
    strides = [(1,) * dimension]
    for stage in range(1, stages):
        kernel = weights.get(f"decoder.transpconvs.{stages - 1 - stage}.weight")
        strides.append((2,) * dimension if kernel is None else tuple(kernel.shape[2:]))
    return tuple(strides)
