"""Small plans and checkpoints of real networks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from nnssl.nnunet.planned_network import build_planned_network
from nnssl.nnunet.plans import PLAIN, RESIDUAL, make_architecture


def configuration(
    patch: Sequence[int],
    spacing: Sequence[float],
    features: Sequence[int] = (4, 8, 8),
    batch: int = 4,
    channels: int = 1,
    residual: bool = False,
) -> dict[str, Any]:
    """One configuration as nnU-Net plans it; every stage but the first halves all axes."""
    dimension, stages = len(patch), len(features)
    strides = [[1] * dimension, *([[2] * dimension] * (stages - 1))]
    kind, levels = RESIDUAL if residual else PLAIN, [2] * (stages - 1)
    return {
        "data_identifier": f"planned_{dimension}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch,
        "patch_size": list(patch),
        "spacing": list(spacing),
        "median_image_size_in_voxels": [float(size) for size in patch],
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "architecture": make_architecture(kind, features, strides, [2] * stages, levels),
        "batch_dice": True,
    }


def plans(name: str = "nnUNetPlans", **configurations: dict[str, Any]) -> dict[str, Any]:
    """Plans; a key such as ``c2d`` is the configuration ``2d``."""
    return {
        "dataset_name": "Dataset005_Target",
        "plans_name": name,
        "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}},
        "configurations": {key.removeprefix("c"): entry for key, entry in configurations.items()},
    }


def dataset(channels: int = 1) -> dict[str, Any]:
    """``dataset.json`` of two labels."""
    names = {str(index): f"MR{index}" for index in range(channels)}
    return {"channel_names": names, "labels": {"background": 0, "one": 1, "two": 2}}


def checkpoint(entry: dict[str, Any], name: str, channels: int = 1, own: bool = True) -> dict:
    """What an nnSSL (or stock) trainer writes for a network with this configuration."""
    trained = {**plans("SourcePlans"), "dataset_name": "Dataset900_Pool"}
    trained["configurations"] = {name: copy.deepcopy(entry)}
    trained["foreground_intensity_properties_per_channel"] = {"0": {"mean": 7.0}}
    weights = build_planned_network(trained, name, dataset(channels)).state_dict()
    said = {"plans": trained, "configuration": name}
    if not own:
        return {"network_weights": weights, "init_args": said}
    return {"network_weights": weights, "nnssl": {**said, "kind": "pretrain"}}
