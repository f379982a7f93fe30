"""Plans of a pool: those of a dataset, for one channel, or nnU-Net's own for the mix."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import nnunetv2
from batchgenerators.utilities.file_and_folder_operations import join
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl.data.pool.assemble import REORIENTING, DatasetPool
from nnssl.data.pool.settings import CT, Z_SCORE

MARK = "nnssl_pool"  # key in the plans, and so in every checkpoint
PLANNER = "ExperimentPlanner"


def like(
    plans: Mapping[str, Any], configurations: Sequence[str], pool: DatasetPool
) -> dict[str, Any]:
    """Architecture, patch and batch of a dataset's plans, for one channel of any modality.

    Args:
        plans: of the dataset.
        configurations: those that the pool gets.
        pool: the pool.

    Raises:
        ValueError: a configuration is unknown, or a cascade's second stage.
    """
    manager = PlansManager(copy.deepcopy(dict(plans)))
    own = {key: value for key, value in manager.plans.items() if key != "configurations"}
    reader = plans["image_reader_writer"]
    own.update(
        dataset_name=pool.folder,
        transpose_forward=[0, 1, 2],
        transpose_backward=[0, 1, 2],
        image_reader_writer="SimpleITKIO" if reader == REORIENTING else reader,
        configurations={name: _configuration(manager, name) for name in configurations},
    )
    own[MARK] = pool.marks()
    return own


def _configuration(manager: PlansManager, name: str) -> dict[str, Any]:
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
    name_of_plans = manager.plans_name
    found.update(
        data_identifier=f"{name_of_plans}_{name}",
        normalization_schemes=[Z_SCORE],
        use_mask_for_norm=[False],
    )
    return found


def ct_statistics(plans: Mapping[str, Any]) -> dict[str, float] | None:
    """The CT statistics of a dataset's plans, so that its images look in the pool as at home."""
    for configuration in plans["configurations"].values():
        for channel, scheme in enumerate(configuration.get("normalization_schemes", [])):
            if scheme == CT:
                found = plans["foreground_intensity_properties_per_channel"][str(channel)]
                return {key: float(value) for key, value in found.items()}
    return None


def universal(pool: DatasetPool, name: str, planner: str = PLANNER) -> dict[str, Any]:
    """What nnU-Net's planner makes of the pool's own fingerprint.

    The pool's `dataset.json` and fingerprint must be on the disk; no plans are written.

    Args:
        pool: the pool.
        name: name of the plans.
        planner: class name of an nnU-Net planner.

    Raises:
        ValueError: nnU-Net has no such planner.
    """
    folder = join(nnunetv2.__path__[0], "experiment_planning")
    kind = recursive_find_python_class(folder, planner, "nnunetv2.experiment_planning")
    if kind is None:
        raise ValueError(f"--planner: nnU-Net has no planner {planner!r}; default: {PLANNER}")
    made = kind(pool.folder, plans_name=name, suppress_transpose=True)
    made.save_plans = recursive_fix_for_json_export
    plans: dict[str, Any] = made.plan_experiment()
    return plans
