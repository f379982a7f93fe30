"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnssl.modules.resnet_unet import STRIDES, ResNetUNet
from tests.tiny import tiny_dataset, tiny_files, trainer_yaml

__all__ = ["tiny_dataset", "tiny_files", "trainer_yaml"]  # fixtures

torch.set_num_threads(1)
os.environ.setdefault("nnUNet_def_n_proc", "1")  # nnU-Net reads it at import; default: 8 processes

PROCESSES = 2


def build_unet(
    dimension: int,
    residual: bool = False,
    *,
    channels: int = 1,
    classes: int = 2,
    features: Sequence[int] = (4, 6, 8),
    seed: int = 0,
) -> nn.Module:
    """A small U-Net built as nnU-Net builds it; the first axis of a 3D one is strided once."""
    torch.manual_seed(seed)
    network_class = ResidualEncoderUNet if residual else PlainConvUNet
    stages = len(features)
    blocks = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    per_stage = {blocks: [1, 2, *[1] * (stages - 2)]}
    network = network_class(
        input_channels=channels,
        num_classes=classes,
        n_stages=stages,
        features_per_stage=list(features),
        conv_op=nn.Conv3d if dimension == 3 else nn.Conv2d,
        kernel_sizes=[[3] * dimension] * stages,
        strides=[[1] * dimension, [2] * dimension, *[[1, 2, 2][-dimension:]] * (stages - 2)],
        n_conv_per_stage_decoder=[1] * (stages - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d if dimension == 3 else nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **per_stage,
    )
    network.apply(network.initialize)
    return network


@pytest.fixture
def make_unet() -> Callable[..., nn.Module]:
    """`make_unet(dimension, residual=False, channels=1, classes=2, features=(4, 6, 8), seed=0)`."""
    return build_unet


def build_resnet(channels: int = 1, classes: int = 2, seed: int = 0) -> nn.Module:
    """A small U-Net with timm's ResNet as encoder, one block a layer."""
    torch.manual_seed(seed)
    return ResNetUNet(
        input_channels=channels,
        num_classes=classes,
        n_stages=6,
        features_per_stage=[4, 64, 16, 16, 24, 32],
        kernel_sizes=[[3, 3]] * 6,
        strides=STRIDES,
        n_blocks_per_stage=[1] * 6,
        n_conv_per_stage_decoder=[1] * 5,
        deep_supervision=True,
    )


@pytest.fixture
def make_resnet() -> Callable[..., nn.Module]:
    """`make_resnet(channels=1, classes=2, seed=0)`."""
    return build_resnet


@pytest.fixture(params=["plain-2d", "plain-3d", "residual-2d", "residual-3d"])
def unet(request: pytest.FixtureRequest) -> nn.Module:
    """Each of the four kinds of small U-Net, with two input channels and three classes."""
    kind, dimension = request.param.split("-")
    return build_unet(int(dimension[0]), kind == "residual", channels=2, classes=3)


@pytest.fixture
def unet_input(unet: nn.Module) -> torch.Tensor:
    """Two random images that fit `unet`: (2, 2, 16, 16) or (2, 2, 8, 16, 16)."""
    size = (16, 16) if unet.encoder.conv_op is nn.Conv2d else (8, 16, 16)
    return torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data, from NNSSL_TEST_DATA or beside the repository; else skips."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NNSSL_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set NNSSL_TEST_DATA to its folder")
    return folder


@pytest.fixture
def two_processes(tmp_path: Path) -> Callable[..., list[Any]]:
    """`two_processes(function, *arguments)`: what `function(rank, *arguments)` returns per rank.

    The function is a module-level one and runs in two fresh processes of one gloo group.
    """

    def run(function: Callable[..., Any], *arguments: Any) -> list[Any]:
        torch.multiprocessing.spawn(
            _in_process, (function, str(tmp_path), arguments), nprocs=PROCESSES
        )
        return [torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES)]

    return run


def _in_process(rank: int, function: Callable[..., Any], folder: str, arguments: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=PROCESSES
    )
    torch.save(function(rank, *arguments), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    # gloo's threads now and then abort the process while the interpreter tears them down; the
    # result is on disk, and a failure above has raised
    os._exit(0)
