"""Small plans and checkpoints of real networks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from nnssl.nnunet.planned_network import build_planned_network

UNETS = "dynamic_network_architectures.architectures.unet."


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
    layer, each = f"{dimension}d", [2] * stages
    network = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": f"torch.nn.modules.conv.Conv{layer}",
        "kernel_sizes": [[3] * dimension] * stages,
        "strides": [[1] * dimension, *([[2] * dimension] * (stages - 1))],
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "n_blocks_per_stage" if residual else "n_conv_per_stage": each,
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{layer}",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "data_identifier": f"planned_{layer}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch,
        "patch_size": list(patch),
        "spacing": list(spacing),
        "median_image_size_in_voxels": [float(size) for size in patch],
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "architecture": {
            "network_class_name": UNETS + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
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
