"""Plans of a pool, and what each case gets: normalisation by modality, spacing by policy."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import nnunetv2
import numpy as np
from batchgenerators.utilities.file_and_folder_operations import join
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl.convert.labels import choose_foreground_rule
from nnssl.data.case_table import REORIENTING
from nnssl.data.pool.members import DatasetPool, PoolCase

MARK = "nnssl_pool"  # key in the plans, and so in every checkpoint
PLANNER = "ExperimentPlanner"
SpacingPolicy = Literal["target", "own", "isotropic"]
POLICIES: tuple[SpacingPolicy, ...] = ("target", "own", "isotropic")
CT, Z_SCORE = "CTNormalization", "ZScoreNormalization"
WINDOW = (-1000.0, 1000.0)  # HU; air to bone
SMALL = 3 / 4  # nnU-Net z-scores inside the mask where its crop leaves less than this


@dataclass(frozen=True)
class CaseSettings:
    """How nnU-Net's preprocessor treats one case."""

    normalization: str  # name of nnU-Net's scheme
    intensities: dict[str, float]  # that the scheme asks for: for CT window and scale
    use_mask: bool  # whether the z-score is taken inside the nonzero mask
    spacing: list[float]  # target spacing in mm, array order; two numbers for 2D
    transpose: list[int]  # nnU-Net's ``transpose_forward``
    reader: str  # nnU-Net's
    foreground: str  # rule of the mask that stands for the label


def make_window(low: float, high: float) -> dict[str, float]:
    """nnU-Net's CT statistics that clip to a window in HU and bring it to -2 ... 2."""
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


def choose_settings(
    case: PoolCase, policy: SpacingPolicy, planned: Sequence[float], window: Mapping[str, float]
) -> CaseSettings:
    """Settings of one case.

    Args:
        policy: ``target``: the planned spacing; ``own``: the member's own median; ``isotropic``:
            one number for all axes, the geometric mean of the two finest planned ones.
        planned: Spacing of the plans in mm, array order; two numbers for 2D.
    """
    member, name = case.member, case.member.channels[case.channel]
    is_ct = name.casefold() == "ct"
    own = member.own_spacing[-len(planned) :]
    spacings = {"target": list(planned), "own": own, "isotropic": make_isotropic(planned)}
    return CaseSettings(
        normalization=CT if is_ct else Z_SCORE,
        intensities=dict(window) if is_ct else {},
        use_mask=not is_ct and member.relative_size < SMALL,
        spacing=[float(mm) for mm in spacings[policy]],
        transpose=member.transpose,
        reader=member.reader,
        foreground=choose_foreground_rule(name),
    )


def make_isotropic(planned: Sequence[float]) -> list[float]:
    """The geometric mean of the two finest axes, on every axis."""
    finest = sorted(planned)[:2]
    return [math.sqrt(math.prod(finest))] * len(planned)


def find_median_shape(pool: DatasetPool, settings: Mapping[str, CaseSettings]) -> list[float]:
    """Median size in voxels after resampling, array order; settings are given by member folder."""
    sizes = []
    for member in pool.members:
        own = settings[member.folder]
        axes = own.transpose[-len(own.spacing) :]
        voxels = member.shapes[:, axes] * member.spacings[:, axes] / np.array(own.spacing)
        sizes += [voxels] * len(member.channels)
    return [float(size) for size in np.median(np.concatenate(sizes), 0)]


def transpose_orientation(letters: str | None, transpose: Sequence[int]) -> str | None:
    """Directions of the stored array's axes, as ``cases.json`` gives them (x, y, z reversed).

    Args:
        letters: Directions of the axes x, y, z of the reader's array (z, y, x).
        transpose: The case's own ``transpose_forward``; the plans of a pool have none.
    """
    if letters is None:
        return None
    array = [letters[2 - axis] for axis in transpose]
    return "".join(reversed(array))


def adapt_plans(plans: Mapping[str, Any], configuration: str, pool: DatasetPool) -> dict[str, Any]:
    """Architecture, patch and batch of a dataset's plans, for one channel of any modality."""
    manager = PlansManager(copy.deepcopy(dict(plans)))
    own = {key: value for key, value in manager.plans.items() if key != "configurations"}
    reader = plans["image_reader_writer"]
    own.update(
        dataset_name=pool.folder,
        transpose_forward=[0, 1, 2],
        transpose_backward=[0, 1, 2],
        image_reader_writer="SimpleITKIO" if reader == REORIENTING else reader,
        configurations={configuration: _adapt_configuration(manager, configuration)},
    )
    own[MARK] = pool.marks()
    return own


def _adapt_configuration(manager: PlansManager, name: str) -> dict[str, Any]:
    known = manager.available_configurations
    if name not in known:
        raise ValueError(f"configuration is {name!r}; the plans have {', '.join(known)} (-c)")
    found = copy.deepcopy(manager.get_configuration(name).configuration)
    if "previous_stage" in found:
        raise ValueError(
            f"{name} is a cascade's second stage, which takes a segmentation as input; make the "
            "pool for 3d_fullres, whose weights it takes"
        )
    found.pop("inherits_from", None)
    found.pop("next_stage", None)
    found.update(
        data_identifier=f"{manager.plans_name}_{name}",
        normalization_schemes=[Z_SCORE],
        use_mask_for_norm=[False],
    )
    return found


def find_ct_statistics(plans: Mapping[str, Any]) -> dict[str, float] | None:
    """The CT statistics of a dataset's plans, so that its images look in the pool as at home."""
    for configuration in plans["configurations"].values():
        for channel, scheme in enumerate(configuration.get("normalization_schemes", [])):
            if scheme == CT:
                found = plans["foreground_intensity_properties_per_channel"][str(channel)]
                return {key: float(value) for key, value in found.items()}
    return None


def plan_mix(pool: DatasetPool, name: str, planner: str) -> dict[str, Any]:
    """What nnU-Net's planner makes of the pool's own fingerprint.

    The pool's `dataset.json` and fingerprint must be on the disk; no plans are written.
    """
    folder = join(nnunetv2.__path__[0], "experiment_planning")
    kind = recursive_find_python_class(folder, planner, "nnunetv2.experiment_planning")
    if kind is None:
        raise ValueError(f"--planner: nnU-Net has no planner {planner!r}; default: {PLANNER}")
    made = kind(pool.folder, plans_name=name, suppress_transpose=True)
    made.save_plans = recursive_fix_for_json_export
    plans: dict[str, Any] = made.plan_experiment()
    return plans
