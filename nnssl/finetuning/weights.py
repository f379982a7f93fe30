"""Weights from one network into another: choose, match, adapt, load, report; nothing silently.

A state dict names most tensors several times (the decoder holds the encoder). A tensor is counted
under its first name only, and writing to that name reaches all others, because `load_state_dict`
copies into the one storage.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nnssl.modules.unet import Trained, lies_in, trained_keys

Part = Literal["encoder", "trained"]
NewChannels = Literal["mean", "zero"]
LARGEST = 1e8  # no training arrives there, and activations soon overflow
OUTPUT_LAYERS = ".seg_layers."
OUTCOMES = ("loaded", "adapted", "skipped", "random")  # of tensors of the target
NO_PLACE = "trained by the source, but this network has no such place"
NO_SKIPS = "reads skip connections, which pre-training had switched off"


@dataclass(frozen=True)
class KeyMatch:
    """What happens to one tensor of the target, or to a part of its input channels.

    Attributes:
        key: its first name in the target's state dict.
        parameters: the number of elements.
        outcome: `loaded`, `adapted` (loaded into a first convolution with another number of input
            channels), `skipped` (wanted, but the source has nothing that fits), `random` (not
            wanted) or `missing` (a tensor of the source that was trained and has no place here).
        reason: why, in words; empty for `loaded`.
    """

    key: str
    parameters: int
    outcome: Literal["loaded", "adapted", "skipped", "random", "missing"]
    reason: str = ""

    @property
    def part(self) -> str:
        if OUTPUT_LAYERS in f".{self.key}":
            return "segmentation layers"
        return self.key.split(".", 1)[0]


@dataclass(frozen=True)
class Transfer:
    """The matches of all tensors of the target and of the source's that are missing in it, and what
    is to be loaded."""

    matches: tuple[KeyMatch, ...]
    tensors: Mapping[str, Tensor]

    @property
    def loaded(self) -> list[str]:
        """Keys that come from the source."""
        return list(self.tensors)

    @property
    def share(self) -> float:
        """Loaded parameters as a share of the wanted ones, missing ones among them, 0 to 1."""
        return self._share(self.matches, "loaded", "adapted", "skipped", "missing")

    @property
    def share_of_encoder(self) -> float:
        """Loaded parameters of the target's encoder as a share of it, 0 to 1."""
        return self._share([match for match in self.matches if match.part == "encoder"], *OUTCOMES)

    @property
    def share_of_network(self) -> float:
        """Loaded parameters as a share of the whole target, 0 to 1."""
        return self._share(self.matches, *OUTCOMES)

    def _share(self, matches: Sequence[KeyMatch], *outcomes: str) -> float:
        whole = _count(matches, *outcomes)
        return _count(matches, "loaded", "adapted") / whole if whole else 0.0

    def require(self, min_share: float) -> None:
        """Raises ValueError when less than `min_share` of the wanted parameters loads."""
        if self.share < min_share or not self.tensors:
            raise ValueError(
                f"Only {self.share:.1%} of the wanted parameters can be loaded; weights.min_share "
                f"asks for {min_share:.1%}. Are the weights from another architecture or from "
                "other plans? nnssl_plan_like FILE -d DATASET makes plans that take all of them.\n"
                + self.table()
            )

    def table(self) -> str:
        """Parameter counts and their share of the network, by part and outcome."""
        total = _count(self.matches, *OUTCOMES)
        rows: dict[tuple[str, str, str], list[int]] = {}
        for match in self.matches:
            row = rows.setdefault((match.part, match.outcome, match.reason), [0, 0])
            row[0] += 1
            row[1] += match.parameters
        lines = [f"{'part':<20}{'what':<9}{'tensors':>8}{'parameters':>13}{'share':>8}  reason"]
        for (part, outcome, reason), (tensors, parameters) in rows.items():
            numbers = f"{tensors:>8}{parameters:>13,}{parameters / max(total, 1):>8.1%}"
            lines.append(f"{part:<20}{outcome:<9}{numbers}  {reason}".rstrip())
        lines.append(
            f"Of the wanted parameters {self.share:.1%} are loaded: {self.share_of_encoder:.1%} of "
            f"this network's encoder, {self.share_of_network:.1%} of this network."
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain record for a checkpoint."""
        return {
            "loaded": self.loaded,
            "share": self.share,
            "share_of_encoder": self.share_of_encoder,
            "share_of_network": self.share_of_network,
            "parameters": {
                outcome: _count(self.matches, outcome) for outcome in (*OUTCOMES, "missing")
            },
            "skipped": {m.key: m.reason for m in self.matches if m.outcome == "skipped"},
        }


def _count(matches: Sequence[KeyMatch], *outcomes: str) -> int:
    return sum(match.parameters for match in matches if match.outcome in outcomes)


def wanted_keys(
    network: nn.Module, trained: Collection[str] | None, part: Part, stages: int | None = None
) -> list[str]:
    """Keys of the target that fine-tuning asks for; segmentation layers are never among them.

    Args:
        network: the target, a planned U-Net.
        trained: keys that the source has trained; None: all (a stock nnU-Net model).
        part: `encoder`, or `trained` (the decoder too, as far as it was trained).
        stages: only the first of the encoder's stages, and no decoder; None: all.

    Raises:
        ValueError: more stages than the encoder has, or nothing of this part was trained.
    """
    keys = trained_keys(network, Trained(encoder_stages=stages))
    if part == "trained" and stages is None:
        keys += trained_keys(network, Trained(encoder_stages=0, decoder_levels=None))
    wanted = [key for key in keys if trained is None or key in set(trained)]
    if not wanted:
        foreign = sorted(set(trained or ()) - set(network.state_dict()))
        if foreign:
            raise ValueError(
                f"The source is of another architecture: it trained {foreign[0]}, for instance, "
                "which this network does not have. Make plans like the source's (nnssl_plan_like "
                "FILE -d DATASET), or pre-train with plans of this architecture "
                "(nnUNetv2_plan_experiment -d DATASET -pl PLANNER, then -p)."
            )
        raise ValueError(
            f"weights.part: found {part!r}, but the source trained nothing of it. Allowed: "
            "'encoder', 'trained'; choose what the pre-training trainer trains (nnssl_trainers)."
        )
    return wanted


def find_missing(
    source: Mapping[str, Tensor],
    target: Collection[str],
    trained: Collection[str] | None,
    part: Part = "trained",
    stages: int | None = None,
) -> list[KeyMatch]:
    """What the source trained, fine-tuning asks for, and the target has no place for.

    Args:
        source: state dict with the weights.
        target: keys of the network to fill.
        trained, part, stages: as of `wanted_keys`.
    """
    decoder = part == "trained" and stages is None
    return [
        KeyMatch(key, source[key].numel(), "missing", NO_PLACE)
        for key in _first_names(source)
        if key not in target
        and (trained is None or key in trained)
        and lies_in(key, stages, decoder)
    ]


def match(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    wanted: Collection[str],
    new_channels: NewChannels = "mean",
    trained_inputs: Mapping[str, int] | None = None,
    missing: Sequence[KeyMatch] = (),
) -> Transfer:
    """Compares two state dicts.

    Args:
        source: state dict with the weights.
        target: state dict of the network to fill.
        wanted: keys (first names) to be filled.
        new_channels: how the first convolution is adapted to another number of input channels.
            `mean`: each channel gets the mean over the source's, scaled so that equal channels give
            the source's response. `zero`: the source's channels are kept, further ones start at
            zero.
        trained_inputs: weights of which the source has trained only so many leading input channels
            (`unet.inputs_without_skips`): the others keep what the target has and count as random.
        missing: what `find_missing` found.

    Raises:
        ValueError: a wanted key that the target does not have, or a source with non-finite weights.
    """
    names = _first_names(target)
    if unknown := sorted(set(wanted) - set(names)):
        raise ValueError(f"wanted: the network has no {unknown[:5]}; allowed: its own first names")
    first = next((key for key in names if key in wanted and target[key].ndim > 2), None)
    tensors: dict[str, Tensor] = {}
    matches = []
    for key in names:
        mode = new_channels if key == first else None
        found, fitted = _match_one(key, source.get(key), target[key], key in wanted, mode)
        parts, count = [found], (trained_inputs or {}).get(key)
        if count is not None and fitted is not None and found.outcome == "loaded":
            parts, fitted = _trained_half(found, fitted, target[key], count)
        matches += parts
        if fitted is not None:
            tensors[key] = fitted
    return Transfer((*matches, *missing), tensors)


def load(network: nn.Module, transfer: Transfer) -> None:
    """Copies the matched tensors into the network."""
    network.load_state_dict(dict(transfer.tensors), strict=False)


def _first_names(state: Mapping[str, Tensor]) -> list[str]:
    seen: set[tuple[int, torch.Size]] = set()
    names = []
    for key, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen:
            names.append(key)
        seen.add(place)
    return names


def _match_one(
    key: str, source: Tensor | None, target: Tensor, wanted: bool, adapt: NewChannels | None
) -> tuple[KeyMatch, Tensor | None]:
    size = target.numel()
    if not wanted:
        reason = "depends on the labels" if OUTPUT_LAYERS in f".{key}" else "not asked for"
        return KeyMatch(key, size, "random", reason), None
    if source is None:
        return KeyMatch(key, size, "skipped", "not in the source"), None
    shapes = f"{list(source.shape)} to {list(target.shape)}"
    same = source.shape == target.shape
    fitted = source if same else _adapt_channels(source, target, adapt) if adapt else None
    if fitted is None:
        return KeyMatch(key, size, "skipped", f"shape {shapes}"), None
    if not bool((fitted.abs() < LARGEST).all()):  # NaN too
        raise ValueError(
            f"The weights of {key} hold NaN, infinity or numbers of {LARGEST:.0e} and more; this "
            "pre-training diverged."
        )
    if same:
        return KeyMatch(key, size, "loaded"), fitted
    return KeyMatch(key, size, "adapted", f"input channels {shapes}, {adapt}"), fitted


def _trained_half(
    found: KeyMatch, source: Tensor, target: Tensor, count: int
) -> tuple[list[KeyMatch], Tensor]:
    """The first `count` input channels of the source beside the target's others."""
    loaded = source[:, :count].numel()
    rest = KeyMatch(found.key, found.parameters - loaded, "random", NO_SKIPS)
    mixed = torch.cat((source[:, :count].to(target), target[:, count:]), dim=1)
    return [replace(found, parameters=loaded), rest], mixed


def _adapt_channels(source: Tensor, target: Tensor, mode: NewChannels) -> Tensor | None:
    """(F, C_old, *k) to (F, C_new, *k), or None where more than the input channels differ."""
    others = [axis for axis in range(source.ndim) if axis != 1]
    if source.ndim != target.ndim or any(source.shape[a] != target.shape[a] for a in others):
        return None
    old, new = source.shape[1], target.shape[1]
    if mode == "mean":
        return (source.sum(1, keepdim=True) / new).expand(target.shape).clone()
    if new < old:
        return None
    adapted = source.new_zeros(target.shape)
    adapted[:, :old] = source
    return adapted
