"""Which weights fit which network: shares that load and what the network then computes, as a table.

Small U-Nets stand for sources and targets; norms are varied as a training varies them. The error is
that of the encoder's features against the source's, relative, on images that both can see (a
constant stack where one of them is 3D, the same image in every channel): 0 is the same response,
about 1.3 is that of random weights.

    python scripts/transfer_matrix.py
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from nnssl.finetuning.weights import Source, asked_keys, fit, load
from nnssl.modules import unet

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
        network = kind(
            input_channels=self.channels, num_classes=2, n_stages=stages,
            features_per_stage=list(self.features), kernel_sizes=kernels, strides=steps,
            conv_op=nn.Conv3d if axes == 3 else nn.Conv2d, n_conv_per_stage_decoder=[2] * levels,
            norm_op=nn.InstanceNorm3d if axes == 3 else nn.InstanceNorm2d, conv_bias=True,
            norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, **{blocks: layers[:stages]},
        )  # fmt: skip
        network.apply(network.initialize)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "norm" in name:
                    parameter += 0.2 * torch.randn_like(parameter)
        return network.eval()

    def see(self, image: Tensor) -> Tensor:
        """An image (1, 1, Y, X) as this network sees it."""
        image = image.expand(-1, self.channels, -1, -1)
        return image if self.dimension == 2 else image[:, :, None].expand(-1, -1, DEPTH, -1, -1)


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


def measure(source: Kind, target: Kind) -> str:
    """Share that loads, and errors of the first and of the deepest stage that both have."""
    giver, taker = source.build(0), target.build(1)
    asked = asked_keys(taker, "trained")
    try:
        transfer = fit(Source(giver.state_dict()), taker, asked)
    except ValueError:
        return "0 %"
    load(taker, transfer)
    image = torch.randn((1, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        both = [
            unet.encode(net, kind.see(image)) for net, kind in ((giver, source), (taker, target))
        ]
    errors = [compare(a, b) for a, b in zip(*both, strict=False)]
    return f"{transfer.share:.0%} ({errors[0]:.2f}, {errors[-1]:.2f})"


def compare(expected: Tensor, found: Tensor) -> float:
    """Relative error of the features that both have, in the middle slice."""
    a, b = (
        each[:, :, each.shape[2] // 2] if each.ndim == 5 else each for each in (expected, found)
    )
    count = min(a.shape[1], b.shape[1])
    return float((a[:, :count] - b[:, :count]).norm() / a[:, :count].norm())


def main() -> None:
    print("| from \\ to |", " | ".join(kind.name for kind in KINDS), "|")
    print("|---" * (len(KINDS) + 1) + "|")
    for source in KINDS:
        print(
            f"| **{source.name}** |", " | ".join(measure(source, t) for t in KINDS), "|", flush=True
        )


if __name__ == "__main__":
    main()
