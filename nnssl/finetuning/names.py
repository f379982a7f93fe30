"""Names of tensors in U-Nets of any maker: wrappers and aliases taken off, and which is which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_WRAPPERS = re.compile(
    r"^(?:(?:module|_orig_mod|backbone|network|model|net)\.)+(?=(?:encoder|decoder)\.)"
)
_ALIASES = (
    (re.compile(r"^decoder\.encoder\."), "encoder."),
    (re.compile(r"\.all_modules\.0\."), ".conv."),
    (re.compile(r"\.all_modules\.[12]\."), ".norm."),  # 2 behind a dropout
)
_LEVEL = re.compile(r"^decoder\.(stages|transpconvs|seg_layers)\.(\d+)\.")
_PLAIN = re.compile(r"^encoder\.stages\.(\d+)\.\d+\.convs\.(\d+)\.")
_BLOCK = re.compile(r"^encoder\.stages\.\d+\.blocks\.\d+\.")
_SHORTCUT = re.compile(r"\.skip\.\d+\.")


def first_name(key: str) -> str:
    """The name under which a planned U-Net lists a tensor first.

    DDP, torch.compile and other holders put words before it; the decoder holds the encoder, and
    every block names its layers twice.
    """
    key = _WRAPPERS.sub("", key)
    for alias, name in _ALIASES:
        key = alias.sub(name, key)
    return key


def name_once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which every tensor stands once, under its first name."""
    named: dict[str, Tensor] = {}
    for key, tensor in state.items():
        named.setdefault(first_name(key), tensor)
    return named


def is_residual(names: Iterable[str]) -> bool:
    """Whether these are first names of a residual encoder."""
    return any(_BLOCK.match(name) for name in names)


def is_plain(names: Iterable[str]) -> bool:
    """Whether these are first names of a plain encoder."""
    return any(_PLAIN.match(name) for name in names)


def pair(source: Iterable[str], target: Iterable[str]) -> dict[str, str]:
    """Target name -> source name of the tensor in the same place.

    Stages are aligned from the input side: encoder stage s with encoder stage s, decoder levels by
    their distance from the full resolution. The convolutions of a plain stage become, in order,
    those of the residual stage's blocks; a single one in the first stage becomes the stem.
    """
    sources, targets = list(source), list(target)
    convert = is_residual(targets) and is_plain(sources)
    stem = convert and not any(key.startswith("encoder.stages.0.0.convs.1.") for key in sources)
    levels = _count_levels(sources)
    known = {_place(_as_residual(key, stem) if convert else key, levels): key for key in sources}
    levels = _count_levels(targets)
    return {key: known[place] for key in targets if (place := _place(key, levels)) in known}


def _count_levels(names: Iterable[str]) -> int:
    return 1 + max((int(found[2]) for name in names if (found := _LEVEL.match(name))), default=-1)


def _place(name: str, levels: int) -> str:
    """A name that is the same in U-Nets of any depth; a shortcut may begin with a pooling."""
    name = _SHORTCUT.sub(".skip.", name)
    return _LEVEL.sub(lambda m: f"decoder.{m[1]}.{int(m[2]) - levels}.", name)


def _as_residual(name: str, stem: bool) -> str:
    def rename(found: re.Match[str]) -> str:
        stage, number = int(found[1]), int(found[2])
        if stem and stage == 0:
            return "encoder.stem.convs.0."
        return f"encoder.stages.{stage}.blocks.{number // 2}.conv{number % 2 + 1}."

    return _PLAIN.sub(rename, name)
