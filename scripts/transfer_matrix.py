"""Which weights fit which network: shares that load and what the network then computes, as a table.

Small U-Nets stand for sources and targets; norms are varied as a training varies them. The error is
that of the encoder's features against the source's, relative, on images that both can see (a
constant stack where one of them is 3D, the same image in every channel): 0 is the same response,
about 1.3 is that of random weights.

A second table is that of ResNets: a file of timm's ResNet-50, read as a user's file is, and plans
of `nnssl_plan_resnet50`. Their first stage is the image itself, so that the second counts as first.

    python scripts/transfer_matrix.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import timm
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from nnssl.cli.plan_resnet50 import BLOCKS
from nnssl.cli.plan_resnet50 import FEATURES as OF_RESNET
from nnssl.finetuning.weights import Source, asked_keys, fit, load
from nnssl.modules import unet
from nnssl.modules.resnet_unet import STRIDES, ResNetUNet
from nnssl.nnunet.weight_files import as_source, read_weights

SIZE, DEPTH = 64, 16
FEATURES = (8, 16, 24, 32, 32)


class Kind(NamedTuple):
    """A kind of U-Net: its first stages may leave the first axis alone (anisotropic)."""

    name: str
    dimension: int = 2
    residual: bool = False
    channels: int = 1
    flat: int = 0
    features: tuple[int, ...] = FEATURES
    resnet: str = ""  # `plan`, or `timm`: its file

    def build(self, seed: int) -> Any:
        stages = len(self.features)
        axes, levels = self.dimension, len(self.features) - 1
        kernels = [[1 if s < self.flat else 3, 3, 3][-axes:] for s in range(stages)]
        steps = [[1 if s <= self.flat else 2, 2, 2][-axes:] for s in range(stages)]
        steps[0] = [1] * axes
        kind: Any = ResidualEncoderUNet if self.residual else PlainConvUNet
        blocks = "n_blocks_per_stage" if self.residual else "n_conv_per_stage"
        layers = [1, 3, 4, 4, 4] if self.residual else [2] * 5
        torch.manual_seed(seed)
        if self.resnet:
            return vary(self._build_resnet())
        network = kind(
            input_channels=self.channels, num_classes=2, n_stages=stages,
            features_per_stage=list(self.features), kernel_sizes=kernels, strides=steps,
            conv_op=nn.Conv3d if axes == 3 else nn.Conv2d, n_conv_per_stage_decoder=[2] * levels,
            norm_op=nn.InstanceNorm3d if axes == 3 else nn.InstanceNorm2d, conv_bias=True,
            norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, **{blocks: layers[:stages]},
        )  # fmt: skip
        network.apply(network.initialize)
        return vary(network)

    def _build_resnet(self) -> Any:
        if self.resnet == "timm":
            return timm.create_model("resnet50")
        return ResNetUNet(
            input_channels=self.channels, num_classes=2, n_stages=6, features_per_stage=OF_RESNET,
            kernel_sizes=[[3, 3]] * 6, strides=STRIDES, n_blocks_per_stage=BLOCKS,
            n_conv_per_stage_decoder=[2] * 5,
        )  # fmt: skip

    def read(self, network: nn.Module) -> Source:
        """Its weights as fine-tuning gets them; timm's from a file."""
        if self.resnet != "timm":
            return Source(network.state_dict())
        with TemporaryDirectory() as folder:
            torch.save(network.state_dict(), Path(folder) / "resnet50.pth")
            return as_source(read_weights(Path(folder) / "resnet50.pth"))

    def encode(self, network: Any, image: Tensor) -> list[Tensor]:
        if self.resnet != "timm":
            return unet.encode(network, self.see(image))
        maps: list[Tensor] = [image, network.act1(network.bn1(network.conv1(self.see(image))))]
        maps.append(network.layer1(network.maxpool(maps[-1])))
        for layer in (network.layer2, network.layer3, network.layer4):
            maps.append(layer(maps[-1]))
        return maps

    def see(self, image: Tensor) -> Tensor:
        """An image (1, 1, Y, X) as this network sees it."""
        image = image.expand(-1, self.channels, -1, -1)
        return image if self.dimension == 2 else image[:, :, None].expand(-1, -1, DEPTH, -1, -1)


def vary(network: Any) -> Any:
    """Norms, and running statistics where there are some, as a training leaves them."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or ".bn" in f".{name}" or "downsample.1" in name:
                parameter += 0.2 * torch.randn_like(parameter)
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.2 * torch.rand_like(buffer)
    return network.eval()


KINDS = (
    Kind("2D plain"),
    Kind("2D plain, 4 channels", channels=4),
    Kind("2D residual", residual=True),
    Kind("2D plain, wider", features=(16, 32, 48, 64, 64)),
    Kind("2D plain, 3 stages", features=FEATURES[:3]),
    Kind("3D plain", 3),
    Kind("3D plain, anisotropic", 3, flat=2),
    Kind("3D residual (adaptation plan)", 3, residual=True),
)


TIMM = Kind("timm's ResNet-50 (file)", channels=3, resnet="timm")
PLANS = tuple(
    Kind(f"ResNet plan, {channels} channel{'s' * (channels > 1)}", channels=channels, resnet="plan")
    for channels in (1, 2, 3, 4)
)
OF_RESNETS = (TIMM, PLANS[0], PLANS[3], KINDS[0], KINDS[2])


def measure(source: Kind, target: Kind) -> str:
    """Share that loads, and errors of the first and of the deepest stage that both have."""
    giver, taker = source.build(0), target.build(1)
    asked = asked_keys(taker, "trained")
    try:
        transfer = fit(source.read(giver), taker, asked)
    except ValueError:
        return "0%"
    load(taker, transfer)
    image = torch.randn((1, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = [kind.encode(net, image) for net, kind in ((giver, source), (taker, target))]
    errors = [compare(a, b) for a, b in zip(*both, strict=False)]
    errors = errors[1:] if source.resnet or target.resnet else errors
    return f"{transfer.share:.0%} ({errors[0]:.2f}, {errors[-1]:.2f})"


def compare(expected: Tensor, found: Tensor) -> float:
    """Relative error of the features that both have, in the middle slice."""
    a, b = (
        each[:, :, each.shape[2] // 2] if each.ndim == 5 else each for each in (expected, found)
    )
    count = min(a.shape[1], b.shape[1])
    return float((a[:, :count] - b[:, :count]).norm() / a[:, :count].norm())


def main() -> None:
    print_table(KINDS, KINDS)
    print()
    print_table(OF_RESNETS, (*PLANS, KINDS[0], KINDS[2]))


def print_table(sources: Sequence[Kind], targets: Sequence[Kind]) -> None:
    print("| from \\ to |", " | ".join(kind.name for kind in targets), "|")
    print("|---" * (len(targets) + 1) + "|")
    for source in sources:
        cells = [measure(source, target) for target in targets]
        print(f"| **{source.name}** |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
