"""Weights from one network into another: choose, match, adapt, load, report; nothing silently.

A state dict names most tensors several times (the decoder holds the encoder). A tensor is counted
under its first name only, and writing to that name reaches all others, because `load_state_dict`
copies into the one storage.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from nnssl.finetuning import rules
from nnssl.finetuning.names import first_name, is_plain, is_residual, name_once, pair
from nnssl.finetuning.report import OUTPUT_LAYERS, KeyMatch, Transfer
from nnssl.modules.unet import Trained, lies_in, trained_keys

Part = Literal["encoder", "trained"]
LARGEST = 1e8  # no training arrives there, and activations soon overflow
NO_PLACE = "trained by the source, but this network has no such place"
NO_SKIPS = "reads skip connections, which pre-training had switched off"
NEW = "channels that the source has not got"
MADE = "made, so that residual blocks compute what plain ones do"
_INPUTS = (
    "encoder.stem.convs.0.conv.weight",
    "encoder.stages.0.0.convs.0.conv.weight",
    "encoder.stages.1.conv1.weight",  # a ResNet's
)
_STEM = "encoder.stem.convs.0."
_BEHIND_STEM = "encoder.stages.0.blocks.0.conv1.conv.weight"
_READS_SKIP = re.compile(r"decoder\.stages\.\d+\.convs\.0\.conv\.weight")
_SHORTCUT = re.compile(r"(encoder\.stages\.\d+\.blocks\.0)\.skip\.\d+\.norm\.(weight|bias)")
_SECOND = re.compile(r"(encoder\.stages\.\d+\.blocks\.\d+)\.conv2\.norm\.(weight|bias)")


@dataclass(frozen=True)
class Source:
    """Weights, and what is known of them.

    Attributes:
        weights: state dict of a U-Net, under any of its names.
        trained: names of what was trained; None: all.
        trained_inputs: weights of which only so many leading input channels are trained
            (`unet.inputs_without_skips`): the others keep what the target has.
        channels: names of the input channels, if they are told.
    """

    weights: Mapping[str, Tensor]
    trained: Collection[str] | None = None
    trained_inputs: Mapping[str, int] = field(default_factory=dict)
    channels: Sequence[str] = ()


@dataclass(frozen=True)
class Adaptation:
    """How tensors of other shapes are made to fit.

    Attributes:
        channels: names of the target's input channels; known ones are found by name.
        keeps_channels: the source's input channels are the target's first ones, further ones start
            at zero (a cascade); else, without names, each gets the mean over the source's.
        cuts_width: a narrower target takes the source's first channels, which changes what is
            computed; else it takes none.
    """

    channels: Sequence[str] = ()
    keeps_channels: bool = False
    cuts_width: bool = False


def asked_keys(network: nn.Module, part: Part, stages: int | None = None) -> list[str]:
    """Keys of the target that fine-tuning asks for; segmentation layers are never among them.

    Args:
        network: the target, a planned U-Net.
        part: `encoder`, or `trained` (the decoder too, as far as it was trained).
        stages: only the first of the encoder's stages, and no decoder; None: all.

    Raises:
        ValueError: more stages than the encoder has.
    """
    keys = trained_keys(network, Trained(encoder_stages=stages))
    if part == "trained" and stages is None:
        keys += trained_keys(network, Trained(encoder_stages=0, decoder_levels=None))
    return keys


def fit(
    source: Source,
    network: nn.Module,
    asked: Sequence[str],
    adaptation: Adaptation = Adaptation(),
    stages: int | None = None,
) -> Transfer:
    """Compares weights with a network, and makes them fit where a rule can (`rules`).

    Args:
        source: the weights.
        network: the planned U-Net to fill; it is not changed.
        asked: its keys that may be filled.
        adaptation: what rules may do.
        stages: how many encoder stages of the source are asked for; None: all.

    Raises:
        ValueError: a key that the network has not got, weights that are not finite, or nothing of
            what is asked was trained.
    """
    state, weights = network.state_dict(), name_once(source.weights)
    names = [key for key in state if first_name(key) == key]
    if unknown := sorted(set(asked) - set(names)):
        raise ValueError(f"asked: the network has no {unknown[:5]}; allowed: its own first names")
    if not any(key.startswith("decoder.") for key in weights):  # nothing of it can be missing
        asked = [key for key in asked if not key.startswith("decoder.")]
    pairs = pair(weights, names)
    converts = is_residual(names) and is_plain(weights)
    told = weights if converts and source.trained is None else source.trained
    trained = None if told is None else {first_name(key) for key in told}
    wanted = {key for key in asked if trained is None or pairs.get(key) in trained}
    if not wanted:
        _refuse_nothing(trained or (), set(pairs.values()))
    half_trained = {first_name(key) for key in source.trained_inputs}
    dimension = next(len(tensor.shape) - 2 for tensor in state.values() if tensor.ndim > 2)
    tensors: dict[str, Tensor] = {}
    matches: list[KeyMatch] = []
    for key in names:
        if key not in wanted:
            reason = "depends on the labels" if OUTPUT_LAYERS in f".{key}" else "not asked for"
            matches.append(KeyMatch(key, state[key].numel(), "random", reason))
            continue
        name = pairs.get(key)
        behind_stem = key == _BEHIND_STEM and name in _INPUTS
        images = state[f"{_STEM}conv.weight"].shape[1] if behind_stem else None
        fitter = _Fitter(key, state[key], dimension, source.channels, adaptation, images)
        parts, fitted = fitter.fit(weights[name] if name else None)
        if fitted is not None:
            if name in half_trained:
                parts, fitted = _keep_half(parts[0], fitted, state[key])
            tensors[key] = fitted
        matches += parts
    if converts:
        made = _complete_residual(tensors, state, asked)
        tensors |= made
        matches = [
            replace(each, outcome="adapted", reason=MADE) if each.key in made else each
            for each in matches
        ]
    missing = _find_missing(weights, set(pairs.values()), trained, stages, asked)
    return Transfer((*matches, *missing), tensors)


def load(network: nn.Module, transfer: Transfer) -> None:
    """Copies the matched tensors into the network."""
    network.load_state_dict(dict(transfer.tensors), strict=False)


def _refuse_nothing(trained: Collection[str], placed: Collection[str]) -> None:
    if foreign := sorted(set(trained) - set(placed)):
        raise ValueError(
            f"The source is of another architecture: it trained {foreign[0]}, for instance, "
            "which this network does not have. Make plans like the source's (nnssl_plan_like "
            "FILE -d DATASET), or pre-train with plans of this architecture "
            "(nnUNetv2_plan_experiment -d DATASET -pl PLANNER, then -p)."
        )
    raise ValueError(
        "weights.part: the source trained nothing of what is asked for. Allowed: 'encoder', "
        "'trained'; choose what the pre-training trainer trains (nnssl_trainers)."
    )


def _find_missing(
    weights: Mapping[str, Tensor],
    placed: Collection[str],
    trained: Collection[str] | None,
    stages: int | None,
    asked: Sequence[str],
) -> Iterator[KeyMatch]:
    """What the source trained, fine-tuning asks for, and the target has no place for."""
    decoder = any(key.startswith("decoder.") for key in asked)
    for key, tensor in weights.items():
        wanted = (trained is None or key in trained) and lies_in(key, stages, decoder)
        if wanted and key not in placed:
            yield KeyMatch(key, tensor.numel(), "missing", NO_PLACE)


@dataclass(frozen=True)
class _Fitter:
    """Makes one tensor of the source fit one of the target."""

    key: str
    target: Tensor
    dimension: int
    old_channels: Sequence[str]
    adaptation: Adaptation
    images: int | None = None  # input channels, where the source reads images and the target a stem

    def fit(self, source: Tensor | None) -> tuple[list[KeyMatch], Tensor | None]:
        size = self.target.numel()
        if source is None:
            return [KeyMatch(self.key, size, "skipped", "not in the source")], None
        if not bool((source.abs() < LARGEST).all()):  # NaN too
            raise ValueError(
                f"The weights of {self.key} hold NaN, infinity or numbers of {LARGEST:.0e} and "
                "more; this pre-training diverged."
            )
        if source.ndim > 2 and self.images is not None:
            return self._fit_behind_stem(source, self.images)
        if source.ndim > 2:
            fitted, done = self._fit_kernel(source)
        else:
            fitted, done = source, []
        is_output = OUTPUT_LAYERS in f".{self.key}" and source.shape != self.target.shape
        if fitted is None or fitted.ndim != self.target.ndim or is_output:
            shapes = f"shape {list(source.shape)} to {list(self.target.shape)}"
            return [KeyMatch(self.key, size, "skipped", "; ".join([shapes, *done]))], None
        new = 0
        if fitted.shape != self.target.shape:
            if not self.adaptation.cuts_width and self._is_narrower(fitted):
                reason = "the source has more features (weights.cut_width takes the first ones)"
                return [KeyMatch(self.key, size, "skipped", reason)], None
            halves = bool(_READS_SKIP.fullmatch(self.key))
            done.append("fewer features" if self._is_narrower(fitted) else "more features")
            fitted, kept = rules.set_width(fitted, self.target, self._is_transposed, halves)
            new = size - kept
        parts = [KeyMatch(self.key, size - new, "adapted" if done else "loaded", "; ".join(done))]
        if new:
            parts.append(KeyMatch(self.key, new, "random", NEW))
        return parts, fitted

    def _fit_behind_stem(
        self, source: Tensor, channels: int
    ) -> tuple[list[KeyMatch], Tensor | None]:
        """The first convolution of a plain encoder as that of a residual one's first block."""
        if 2 * channels > self.target.shape[1]:
            reason = "the stem has too few features for the signs of all channels"
            return [KeyMatch(self.key, self.target.numel(), "skipped", reason)], None
        plain = replace(self, key=_INPUTS[1], target=self.target[:, :channels], images=None)
        parts, fitted = plain.fit(source)
        if fitted is None:
            return [replace(each, key=self.key) for each in parts], None
        how = "; ".join(filter(None, [parts[0].reason, "plain to residual"]))
        rest = self.target.numel() - fitted.numel()
        fitted = rules.split_signs(fitted, self.target)
        loaded = KeyMatch(self.key, self.target.numel() - rest, "adapted", how)
        return [loaded, KeyMatch(self.key, rest, "random", NEW)], fitted

    @property
    def _is_transposed(self) -> bool:
        return ".transpconvs." in self.key and self.target.ndim > 1

    def _is_narrower(self, source: Tensor) -> bool:
        return any(a > b for a, b in zip(source.shape, self.target.shape, strict=True))

    def _fit_kernel(self, kernel: Tensor) -> tuple[Tensor | None, list[str]]:
        """Dimension, then kernel, then input channels; what was done, in words."""
        done, wanted = [], self.target.shape[2:]
        if kernel.ndim - 2 != self.dimension:
            done.append(f"{kernel.ndim - 2}D to {self.dimension}D")
            kernel = rules.change_dimension(kernel, self.dimension, self._is_transposed)
        if kernel.shape[2:] != wanted:
            if not done:
                done.append(f"kernel {_say(kernel.shape[2:])} to {_say(wanted)}")
            resize = rules.resize_transposed if self._is_transposed else rules.resize_kernel
            resized = resize(kernel, wanted)
            if resized is None:
                return None, ["no rule for this kernel"]
            kernel = resized
        if self.key in _INPUTS:
            kernel, how = self._fit_channels(kernel)
            done += how
        return kernel, done

    def _fit_channels(self, kernel: Tensor) -> tuple[Tensor, list[str]]:
        old, new = kernel.shape[1], self.target.shape[1]
        names = self.old_channels, self.adaptation.channels
        order: Sequence[int | None] | None = None
        told = [len(each) for each in names] == [old, new]
        if told and (order := rules.match_channels(*names)) is not None:
            how = "by name"
        elif old == new:
            return kernel, []
        elif self.adaptation.keeps_channels:
            order, how = [i if i < old else None for i in range(new)], "new ones zero"
        else:
            how = "mean"
        done = [f"input channels {old} to {new}, {how}"]
        if order is None:
            return rules.repeat_channels(kernel, new), done
        return rules.select_channels(kernel, order), done


def _say(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _keep_half(found: KeyMatch, fitted: Tensor, target: Tensor) -> tuple[list[KeyMatch], Tensor]:
    """The inputs from below of a decoder's weight; the others, of a skip connection, stay."""
    count = target.shape[1] // 2
    size = target[:, :count].numel()
    mixed = torch.cat((fitted[:, :count].to(target), target[:, count:]), dim=1)
    rest = KeyMatch(found.key, target.numel() - size, "random", NO_SKIPS)
    return [replace(found, parameters=size), rest], mixed


def _complete_residual(
    tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], asked: Sequence[str]
) -> dict[str, Tensor]:
    """What a residual encoder needs beside the tensors of a plain one, to compute the same.

    A block with a projection computes its two convolutions, one that has got none passes its input
    on: the norms in the other way are zero. Shortcuts without a projection stay open.
    """
    made = {}
    for key in asked:
        shortcut, second = _SHORTCUT.fullmatch(key), _SECOND.fullmatch(key)
        block = (shortcut or second or [""] * 2)[1]
        filled = f"{block}.conv2.conv.weight" in tensors
        if (shortcut and filled) or (second and not filled):
            made[key] = torch.zeros_like(state[key])
    if _BEHIND_STEM in tensors and f"{_STEM}conv.weight" not in tensors:
        stem = rules.make_stem(state[f"{_STEM}conv.weight"])
        made |= {_STEM + name: value for name, value in stem.items() if _STEM + name in asked}
    return made
