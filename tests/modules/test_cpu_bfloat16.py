"""Gradients of shallow 3D maps in bfloat16 on the CPU are those of float32."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from nnssl.modules.cpu_bfloat16 import float32_where_shallow

# glibc fills memory with 0x7f, about 3e38 in bfloat16: what nobody has set shows at once
POISON = {**os.environ, "MALLOC_PERTURB_": "128"}
COMPARE = """
import torch
from nnssl.modules.cpu_bfloat16 import float32_where_shallow

torch.manual_seed(0)
network = torch.nn.Sequential(*[torch.nn.Conv3d(16, 16, 3, padding=1) for _ in range(2)])
float32_where_shallow(network)
image, gradients = torch.randn(4, 16, *{size}), []
for half in (False, True):
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        network(image).float().square().mean().backward()
    gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
exact, found = gradients
error = float((found - exact).norm() / exact.norm())
assert error < 0.02, error
"""


@pytest.mark.parametrize("size", [(2, 6, 6), (2, 2, 2), (3, 2, 2), (4, 4, 4)])
def test_gradients_are_those_of_float32(size):
    code = COMPARE.format(size=size)
    done = subprocess.run([sys.executable, "-c", code], env=POISON, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]


def test_only_shallow_maps_leave_bfloat16_and_keys_stay():
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 2, (1, 3, 3)))
    keys = list(network.state_dict())
    plain = network[1]._conv_forward
    float32_where_shallow(network)
    assert list(network.state_dict()) == keys
    assert network[1]._conv_forward == plain  # its kernel does not span two slices
    with torch.autocast("cpu", torch.bfloat16):
        assert network[0](torch.rand(1, 1, 2, 4, 4)).dtype == torch.float32
        assert network[0](torch.rand(1, 1, 3, 4, 4)).dtype == torch.bfloat16
    assert network[0](torch.rand(1, 1, 3, 4, 4)).dtype == torch.float32
