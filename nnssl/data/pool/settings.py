"""What each case of a pool gets: normalisation by modality, spacing by policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from nnssl.convert.labels import choose_foreground_rule
from nnssl.data.pool.assemble import DatasetPool, PoolCase

SpacingPolicy = Literal["target", "own", "isotropic"]
POLICIES: tuple[SpacingPolicy, ...] = ("target", "own", "isotropic")
CT, Z_SCORE = "CTNormalization", "ZScoreNormalization"
WINDOW = (-1000.0, 1000.0)  # HU; air to bone
SMALL = 3 / 4  # nnU-Net z-scores inside the mask where its crop leaves less than this


@dataclass(frozen=True)
class CaseSettings:
    """How nnU-Net's preprocessor treats one case.

    Attributes:
        normalization: Name of nnU-Net's scheme.
        intensities: Statistics that the scheme asks for: for CT the window and its scale.
        use_mask: Whether the z-score is taken inside the nonzero mask.
        spacing: Target spacing in mm, array order; two numbers for 2D.
        transpose: nnU-Net's ``transpose_forward``.
        reader: Name of nnU-Net's reader.
        foreground: Rule of the mask that stands for the label.
    """

    normalization: str
    intensities: dict[str, float]
    use_mask: bool
    spacing: list[float]
    transpose: list[int]
    reader: str
    foreground: str

    def to_dict(self) -> dict[str, Any]:
        """Plain record."""
        return asdict(self)


def window_statistics(low: float, high: float) -> dict[str, float]:
    """nnU-Net's CT statistics that clip to a window and bring it to -2 ... 2.

    Raises:
        ValueError: The window is empty.
    """
    if not low < high:
        raise ValueError(f"--window: found {low:g} {high:g}, allowed: LOW below HIGH, in HU")
    middle, scale = (low + high) / 2, (high - low) / 4
    return {
        "mean": middle,
        "median": middle,
        "std": scale,
        "min": low,
        "max": high,
        "percentile_00_5": low,
        "percentile_99_5": high,
    }


def settings_of(
    case: PoolCase, policy: SpacingPolicy, planned: Sequence[float], window: Mapping[str, float]
) -> CaseSettings:
    """Settings of one case.

    Args:
        case: The case.
        policy: ``target``: the planned spacing; ``own``: the member's own median; ``isotropic``:
            one number for all axes, the geometric mean of the two finest planned ones.
        planned: Spacing of the plans in mm, array order; two numbers for 2D.
        window: Statistics of CT, see :func:`window_statistics`.
    """
    member, name = case.member, case.member.channels[case.channel]
    is_ct = name.casefold() == "ct"
    own = member.own_spacing[-len(planned) :]
    spacings = {"target": list(planned), "own": own, "isotropic": isotropic(planned)}
    return CaseSettings(
        normalization=CT if is_ct else Z_SCORE,
        intensities=dict(window) if is_ct else {},
        use_mask=not is_ct and member.relative_size < SMALL,
        spacing=[float(mm) for mm in spacings[policy]],
        transpose=member.transpose,
        reader=member.reader,
        foreground=choose_foreground_rule(name),
    )


def isotropic(planned: Sequence[float]) -> list[float]:
    """The geometric mean of the two finest axes, on every axis."""
    finest = sorted(planned)[:2]
    return [math.sqrt(math.prod(finest))] * len(planned)


def median_shape(pool: DatasetPool, settings: Mapping[str, CaseSettings]) -> list[float]:
    """Median size in voxels after resampling, array order, over the members' images.

    Args:
        pool: The pool.
        settings: Folder of the member -> settings of one of its cases.
    """
    sizes = []
    for member in pool.members:
        own = settings[member.folder]
        axes = own.transpose[-len(own.spacing) :]
        voxels = member.shapes[:, axes] * member.spacings[:, axes] / np.array(own.spacing)
        sizes += [voxels] * len(member.channels)
    return [float(size) for size in np.median(np.concatenate(sizes), 0)]


def stored_orientation(letters: str | None, transpose: Sequence[int]) -> str | None:
    """Directions of the stored array's axes, as ``cases.json`` gives them (x, y, z reversed).

    Args:
        letters: Directions of the axes x, y, z of the reader's array (z, y, x).
        transpose: The case's own ``transpose_forward``; the plans of a pool have none.
    """
    if letters is None:
        return None
    array = [letters[2 - axis] for axis in transpose]
    return "".join(reversed(array))
