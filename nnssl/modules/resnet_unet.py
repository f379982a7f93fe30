"""A 2D U-Net whose encoder is timm's ResNet, as ImageNet's weights want it; nnU-Net's decoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import prod
from typing import Any

from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn
from torch.nn.functional import pad

STRIDES = [[1, 1], *[[2, 2]] * 5]  # of a ResNet's stem, pooling and layers, behind the image itself
STEM = 64  # features of every ResNet's first convolution
EXPANSION = 4  # of a bottleneck block
WITHOUT_BLOCKS = [1, 1]  # the image and the stem


class ResNetUNet(nn.Module):
    """ResNet and decoder in the six stages of a plan: image, stem, layer1 to layer4.

    A ResNet has no map at full resolution. There the decoder's skip connection is the image: the
    first stage widens it by zeros to the features of that level, and has no weights. So all weights
    of the encoder are the ResNet's, and its maps are exactly timm's.

    The encoder keeps BatchNorm, without which ImageNet's weights are worth nothing: a batch is
    normalised as one in training, and by running statistics in prediction. The decoder has
    nnU-Net's InstanceNorm and LeakyReLU.

    Args:
        input_channels: C of the images.
        num_classes: outputs.
        n_stages: 6.
        features_per_stage: of each stage; 64 in the stem, four times the width in the layers.
        kernel_sizes: of the decoder's convolutions, per stage.
        strides: 1, then 2 five times.
        n_blocks_per_stage: 1 for image and stem, then of the layers (ResNet-50: 3, 4, 6, 3).
        n_conv_per_stage_decoder: of each level, from the bottleneck upwards.
        deep_supervision: whether all levels give an output.

    Raises:
        ValueError: it is no ResNet, the image has more channels than the first stage features, or
            timm is not installed.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        kernel_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        n_blocks_per_stage: Sequence[int],
        n_conv_per_stage_decoder: Sequence[int],
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        features, blocks = list(features_per_stage), list(n_blocks_per_stage)
        given = {
            "strides": ([list(stride) for stride in strides], STRIDES),
            "n_stages": (n_stages, len(STRIDES)),
            "features_per_stage[1]": (features[1:2], [STEM]),
            "n_blocks_per_stage[:2]": (blocks[:2], WITHOUT_BLOCKS),
        }
        for name, (found, allowed) in given.items():
            if found != allowed:
                raise ValueError(f"{name}: found {found}, allowed: {allowed}, a ResNet's")
        if not 1 <= input_channels <= features[0]:
            raise ValueError(
                f"input_channels: found {input_channels}, allowed: 1 to {features[0]}, as many as "
                "the first stage has features, which passes the image on"
            )
        self.encoder = ResNetEncoder(input_channels, features, blocks, kernel_sizes)
        convolutions = list(n_conv_per_stage_decoder)
        self.decoder = UNetDecoder(self.encoder, num_classes, convolutions, deep_supervision)
        for part in self.decoder.children():
            if part is not self.encoder:
                part.apply(InitWeights_He(1e-2))  # as nnU-Net

    def forward(self, x: Tensor) -> Any:
        return self.decoder(self.encoder(x))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """nnU-Net's measure of memory: numbers in the outputs of all convolutions."""
        decoder = self.decoder.compute_conv_feature_map_size(list(input_size))
        return self.encoder.compute_conv_feature_map_size(input_size) + int(decoder)


class ResNetEncoder(nn.Module):
    """timm's ResNet in stages, with what nnU-Net's decoder asks of an encoder.

    Args:
        input_channels: of the images.
        features: of each stage.
        blocks: of each stage.
        kernel_sizes: of the decoder, per stage.
    """

    conv_op, conv_bias = nn.Conv2d, True
    norm_op, norm_op_kwargs = nn.InstanceNorm2d, {"eps": 1e-5, "affine": True}
    dropout_op, dropout_op_kwargs = None, None
    nonlin, nonlin_kwargs = nn.LeakyReLU, {"inplace": True}

    def __init__(
        self,
        input_channels: int,
        features: Sequence[int],
        blocks: Sequence[int],
        kernel_sizes: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        try:
            from timm.models import resnet
        except ImportError as error:
            raise ValueError("this network needs the package timm: pip install timm") from error
        self.output_channels, self.strides = list(features), STRIDES
        self.kernel_sizes = [list(kernel) for kernel in kernel_sizes]
        bottleneck: Any = resnet.Bottleneck  # timm's annotation asks for a block, not its class
        net: Any = resnet.ResNet(
            bottleneck,
            tuple(blocks[2:]),
            num_classes=0,
            in_chans=input_channels,
            channels=tuple(each // EXPANSION for each in features[2:]),
        )
        take, stem = _TakeImage(input_channels), {"conv1": net.conv1, "bn1": net.bn1}
        stages: list[dict[str, nn.Module]] = [
            {"image": _WidenImage(features[0])},
            {"image": take, **stem, "act1": net.act1},
            {"maxpool": net.maxpool, "layer1": net.layer1},
            *({name: getattr(net, name)} for name in ("layer2", "layer3", "layer4")),
        ]
        self.stages = nn.ModuleList(nn.Sequential(OrderedDict(stage)) for stage in stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Numbers in the outputs of all convolutions."""
        total = 0
        for number, stage in enumerate(self.stages):
            cells = prod(input_size) // 4**number
            for name, module in stage.named_modules():
                if isinstance(module, nn.Conv2d):
                    before_stride = number > 2 and name.endswith(".0.conv1")
                    total += module.out_channels * cells * (4 if before_stride else 1)
        return total


class _WidenImage(nn.Module):
    """Images (B, C, H, W) as maps (B, features, H, W): zeros follow the channels."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return pad(x, (0, 0, 0, 0, 0, self.features - x.shape[1]))


class _TakeImage(nn.Module):
    """The channels of the image, from such a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.channels]
