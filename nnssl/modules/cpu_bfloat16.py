"""Where bfloat16 is wrong on CPUs: 3D convolutions of maps that are two voxels deep."""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn

SHALLOW = 2  # voxels on the first image axis


def float32_where_shallow(module: nn.Module) -> None:
    """Let the 3D convolutions of a module compute shallow maps in float32, on CPUs under autocast.

    On CPUs with bfloat16 instructions, torch 2.14.1 (oneDNN) adds the gradient of a weight's middle
    taps to memory that nobody has set, where the kernel spans more than one voxel of the first
    image axis and the map has just two there: now and then the result is not finite, else it may be
    wrong and look right. Other sizes, forward passes, 2D and float32 agree with float32.

    State-dict keys stay as they are.
    """
    for convolution in module.modules():
        if isinstance(convolution, nn.Conv3d) and convolution.kernel_size[0] > 1:
            convolution._conv_forward = MethodType(_forward, convolution)  # type: ignore[method-assign]


def _forward(self: nn.Conv3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.shape[2] != SHALLOW or not torch.is_autocast_enabled("cpu"):
        return nn.Conv3d._conv_forward(self, x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        return nn.Conv3d._conv_forward(self, x.float(), weight, bias)
