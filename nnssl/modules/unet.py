"""The only file that knows the insides of nnU-Net's U-Nets.

Both networks of dynamic-network-architectures hold `encoder` (`stages`, for the residual one also
`stem`) and `decoder` (`stages`, `transpconvs`, `seg_layers`, from the bottleneck upwards); so does
our U-Net with a ResNet as encoder, whose first stage has no weights. Two
traps: `decoder.encoder` *is* the encoder, so that `decoder.requires_grad_(False)` freezes both;
and a state dict names most tensors several times (`decoder.encoder.*`, `all_modules.*`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn
from torch.func import functional_call

from nnssl.modules.resnet_unet import ResNetUNet

_READS_SKIP = "convs.0.conv.weight"  # of a decoder stage


@dataclass(frozen=True)
class Trained:
    """Parts of the U-Net that an objective trains; all the rest is frozen.

    Attributes:
        encoder_stages: stages counted from the input, the stem belongs to the first; 0: the
            encoder is frozen, None: all.
        decoder_levels: decoder stages (with their transposed convolutions) counted from the
            bottleneck; None: all.
        skips: whether the decoder sees skip connections; a record for fine-tuning.
        output: whether the segmentation layer of the last of these levels is trained.
    """

    encoder_stages: int | None = None
    decoder_levels: int | None = 0
    skips: bool = True
    output: bool = False


def check_network(network: nn.Module) -> None:
    """Raises ValueError unless the network is one of the U-Nets that this file knows."""
    if type(network) not in (PlainConvUNet, ResidualEncoderUNet, ResNetUNet):
        raise ValueError(
            f"network: found {type(network).__name__}, allowed: PlainConvUNet, "
            "ResidualEncoderUNet, ResNetUNet. Plan the experiment with one of these architectures."
        )


def encode(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs of all encoder stages for images (B, C, *S), highest resolution first."""
    encoder = _encoder(network)
    x = encoder.stem(x) if _has_stem(network) else x
    outputs = []
    for stage in encoder.stages:
        x = stage(x)
        outputs.append(x)
    return outputs


def decode(
    network: nn.Module,
    skips: Sequence[Tensor],
    levels: int | None = None,
    use_skips: bool = True,
    done: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Outputs of the decoder stages, from the bottleneck upwards.

    Args:
        network: the U-Net.
        skips: what `encode` returned; only the last one is read where `use_skips` is False.
        levels: number of decoder stages to run, None: all.
        use_skips: False puts zeros in the place of the skip connections (and does not compute with
            them: the halves of the convolutions that read them are left out).
        done: outputs of the first stages, which are not computed again.

    Raises:
        ValueError: more levels than the decoder has.
    """
    decoder = _decoder(network)
    count = count_levels(network, levels)
    outputs = list(done[:count])
    x = [*skips[-1:], *outputs][-1]
    for level in range(len(outputs), count):
        x, stage = decoder.transpconvs[level](x), decoder.stages[level]
        if use_skips:
            x = stage(torch.cat((x, skips[-(level + 2)]), 1))
        else:
            weight = {_READS_SKIP: stage.get_parameter(_READS_SKIP)[:, : x.shape[1]]}
            x = functional_call(stage, weight, (x,), tie_weights=False)
        outputs.append(x)
    return outputs


def project_out(network: nn.Module, features: Tensor, level: int = -1) -> Tensor:
    """The segmentation layer of a decoder level (default: full resolution) as 1x1 head."""
    output: Tensor = _decoder(network).seg_layers[level](features)
    return output


def freeze_untrained(network: nn.Module, trained: Trained) -> None:
    """Lets exactly the parameters of the trained parts require a gradient."""
    prefixes = _prefixes(network, trained)
    for name, parameter in network.named_parameters():  # each once, by its first name
        parameter.requires_grad_(name.startswith(prefixes))


def trained_keys(network: nn.Module, trained: Trained) -> list[str]:
    """State-dict keys of the trained parts, each tensor once (by its first name)."""
    prefixes, seen, keys = _prefixes(network, trained), set(), []
    for key, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and key.startswith(prefixes):
            keys.append(key)
        seen.add(id(tensor))
    return keys


def lies_in(key: str, encoder_stages: int | None, decoder: bool) -> bool:
    """Whether a state-dict key of any U-Net lies in so many of its encoder's stages (None: all), or
    in its decoder without segmentation layers; aliases lie nowhere."""
    part, kind, number, *_ = [*key.split("."), "", ""]
    if part == "encoder":
        return encoder_stages is None or kind == "stem" or int(number) < encoder_stages
    return decoder and part == "decoder" and kind in ("stages", "transpconvs")


def inputs_without_skips(network: nn.Module) -> dict[str, int]:
    """What of the decoder is trained without skip connections: weight -> leading input channels.

    Returns:
        First name of each weight that reads a skip connection, and the number of its input channels
        that come from below; the others, which read the skip connection, follow them.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    weights = [stage.get_parameter(_READS_SKIP) for stage in _decoder(network).stages]
    from_below = output_channels(network)[-2::-1]
    return {names[id(w)]: count for w, count in zip(weights, from_below, strict=True)}


def plain_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict on the CPU: all keys, names of one tensor share one storage."""
    copies: dict[int, Tensor] = {}
    plain = {}
    for key, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().to("cpu", copy=True).contiguous()
        plain[key] = copies[id(tensor)]
    return plain


def compile_parts(network: nn.Module) -> None:
    """Compiles, in place, what `encode` and `decode` call; the state-dict keys stay."""
    for part in (*encoder_parts(network), *_decoder(network).stages):
        part.compile()


def check_stage(network: nn.Module, stage: int) -> None:
    """Raises ValueError unless the encoder has a stage of this number."""
    count = len(_encoder(network).stages)
    if not 0 <= stage < count:
        raise ValueError(f"stage: found {stage}, allowed are 0 to {count - 1} or null")


def count_levels(network: nn.Module, levels: int | None) -> int:
    """So many decoder levels, None: all; raises ValueError where the decoder has fewer."""
    return _count("decoder_levels", levels, len(_decoder(network).stages))


def strides(network: nn.Module) -> list[list[int]]:
    """Stride of each encoder stage per axis."""
    return [[int(step) for step in stride] for stride in _encoder(network).strides]


def total_stride(network: nn.Module) -> list[int]:
    """Stride from the image to the bottleneck per axis."""
    return [prod(steps) for steps in zip(*strides(network), strict=True)]


def stage_sizes(network: nn.Module, size: Sequence[int]) -> list[list[int]]:
    """Size of the map of each encoder stage for images of `size`, which the strides divide."""
    sizes, current = [], list(size)
    for steps in strides(network):
        current = [length // step for length, step in zip(current, steps, strict=True)]
        sizes.append(current)
    return sizes


def fitting_size(network: nn.Module, size: Sequence[int]) -> list[int]:
    """The size nearest to `size` that the strides divide, two or more bottleneck cells per axis."""
    return [
        max(2, round(length / step)) * step
        for length, step in zip(size, total_stride(network), strict=True)
    ]


def encoder_parts(network: nn.Module) -> list[nn.Module]:
    """What the encoder computes one after the other: its stem, if it has one, and its stages."""
    stem = [_encoder(network).stem] if _has_stem(network) else []
    return [*stem, *_encoder(network).stages]


def encoder_modules(network: nn.Module) -> list[nn.Module]:
    """All modules of the encoder, nested ones too, each once."""
    return list(_encoder(network).modules())


def output_channels(network: nn.Module) -> list[int]:
    """Features of each encoder stage."""
    return [int(features) for features in _encoder(network).output_channels]


def encoder_share(network: nn.Module, size: Sequence[int]) -> float:
    """Share of the network's activations that the encoder makes for images of `size`."""
    encoder = _encoder(network).compute_conv_feature_map_size(list(size))
    whole = encoder + _decoder(network).compute_conv_feature_map_size(list(size))
    return float(encoder / whole)


def encoder_stage_parameters(network: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters of each encoder stage; those of the stem count to the first."""
    parameters = [list(stage.parameters()) for stage in _encoder(network).stages]
    if _has_stem(network):
        parameters[0] = [*_encoder(network).stem.parameters(), *parameters[0]]
    return parameters


def _encoder(network: nn.Module) -> Any:
    return network.encoder


def _decoder(network: nn.Module) -> Any:
    return network.decoder


def _has_stem(network: nn.Module) -> bool:
    return getattr(_encoder(network), "stem", None) is not None


def _count(name: str, value: int | None, available: int) -> int:
    if value is not None and not 0 <= value <= available:
        raise ValueError(f"{name}: found {value}, allowed: 0 to {available}, or null for all")
    return available if value is None else value


def _prefixes(network: nn.Module, trained: Trained) -> tuple[str, ...]:
    stages = _count("encoder_stages", trained.encoder_stages, len(_encoder(network).stages))
    levels = count_levels(network, trained.decoder_levels)
    if trained.output and not levels:
        raise ValueError("output: found True with decoder_levels 0, allowed: with 1 or more levels")
    parts = [f"encoder.stages.{number}." for number in range(stages)]
    parts += ["encoder.stem."] if stages else []
    for level in range(levels):
        parts += [f"decoder.transpconvs.{level}.", f"decoder.stages.{level}."]
    return (*parts, f"decoder.seg_layers.{levels - 1}.") if trained.output else tuple(parts)
