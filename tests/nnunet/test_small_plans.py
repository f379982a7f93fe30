"""Small copies of plans: arithmetic by hand, and networks that nnU-Net builds from them."""

from __future__ import annotations

import copy

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnssl.nnunet.small_plans import plan_strides, shrink_plans

UNETS = "dynamic_network_architectures.architectures.unet"


def plans(dimension: int, residual: bool = False) -> dict:
    """What nnU-Net plans, as far as it matters here."""
    convolution = f"torch.nn.modules.conv.Conv{dimension}d"
    per_stage = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    network = {
        "network_class_name": f"{UNETS}.{'ResidualEncoder' if residual else 'PlainConv'}UNet",
        "arch_kwargs": {
            "n_stages": 7,
            "features_per_stage": [32, 64, 128, 256, 512, 512, 512],
            "conv_op": convolution,
            "kernel_sizes": [[3] * dimension] * 7,
            "strides": [[1] * dimension] + [[2] * dimension] * 6,
            per_stage: [2] * 7,
            "n_conv_per_stage_decoder": [2] * 6,
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimension}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "batch_size": 49,
        "patch_size": [256, 224] if dimension == 2 else [20, 256, 224],
        "median_image_size_in_voxels": [237.0, 208.0] if dimension == 2 else [9.0, 237.0, 208.0],
        "spacing": [1.5625, 1.5625] if dimension == 2 else [10.0, 1.5625, 1.5625],
        "architecture": network,
    }
    inherited = {"inherits_from": "3d_lowres"}
    return {
        "dataset_name": "Dataset027_ACDC",
        "plans_name": "nnUNetPlans",
        "configurations": {"full": configuration, "cascade": inherited},
    }


def test_defaults_2d():
    small, warnings = shrink_plans(plans(2), "full", "Small")
    configuration = small["configurations"]["full"]
    assert (small["plans_name"], list(small["configurations"])) == ("Small", ["full"])
    assert small["dataset_name"] == "Dataset027_ACDC"
    assert (configuration["patch_size"], configuration["batch_size"]) == ([80, 80], 8)
    assert configuration["spacing"] == [2.5, 2.5]
    assert configuration["data_identifier"] == "Small_full"
    assert configuration["median_image_size_in_voxels"] == [237 * 0.625, 208 * 0.625]
    network = configuration["architecture"]["arch_kwargs"]
    assert network["features_per_stage"] == [16, 32, 64, 128]
    assert network["strides"] == [[1, 1], [2, 2], [2, 2], [2, 2]]
    assert (network["n_conv_per_stage"], network["n_conv_per_stage_decoder"]) == ([2] * 4, [2] * 3)
    assert warnings == []


def test_defaults_3d_keep_spacing_and_warn_of_padding():
    small, warnings = shrink_plans(plans(3), "full", "Small")
    configuration = small["configurations"]["full"]
    assert configuration["spacing"] == [10.0, 1.5625, 1.5625]
    assert (configuration["patch_size"], configuration["batch_size"]) == ([32, 32, 32], 4)
    network = configuration["architecture"]["arch_kwargs"]
    assert network["strides"] == [[1, 1, 1], [1, 2, 2], [1, 2, 2]]
    assert network["kernel_sizes"] == [[1, 3, 3], [1, 3, 3], [3, 3, 3]]
    assert warnings == ["patch axis 0 is 32 voxels, the median image only 9: mostly padding"]


@pytest.mark.parametrize(
    ("patch", "spacing", "stages", "strides", "kernels"),
    [
        ([8, 32], [1, 1], 3, [[1, 1], [2, 2], [1, 2]], [[3, 3], [3, 3], [3, 3]]),  # 4 is smallest
        ([12, 40], [1, 1], 4, [[1, 1], [2, 2], [1, 2], [1, 2]], [*[[3, 3]] * 3, [3, 1]]),  # 3
        ([16, 16], [4, 1], 2, [[1, 1], [1, 2]], [[1, 3], [3, 3]]),  # coarse axis waits
    ],
)
def test_plan_strides(patch, spacing, stages, strides, kernels):
    assert plan_strides(patch, spacing, stages) == (strides, kernels)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dimension", [2, 3])
def test_nnunet_builds_the_network(dimension: int, residual: bool):
    small, _ = shrink_plans(
        plans(dimension, residual), "full", "Small", patch=[16], features=[4, 8]
    )
    configuration = small["configurations"]["full"]
    architecture = configuration["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        4,
        deep_supervision=False,
    )
    size = configuration["patch_size"]
    assert network(torch.zeros(1, 1, *size)).shape == (1, 4, *size)
    if residual:
        assert architecture["arch_kwargs"]["n_blocks_per_stage"] == [1, 2]


def test_the_original_is_not_changed():
    original = plans(2)
    before = copy.deepcopy(original)
    shrink_plans(original, "full", "Small")
    assert original == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"configuration": "3d"}, "configuration is '3d'; the plans have full, cascade"),
        ({"configuration": "cascade"}, "inherits from 3d_lowres: take 3d_lowres instead"),
        ({"name": "nnUNetPlans"}, "name is 'nnUNetPlans', that of the plans"),
        ({"patch": [32, 32, 32]}, "patch is \\[32, 32, 32\\]; it takes 1 or 2"),
        ({"patch": [2]}, "patch is \\[2, 2\\]; each must be at least 4"),
        ({"patch": [10], "features": [4, 8, 16]}, "patch \\[10, 10\\] allows only 2 stages"),
        ({"features": [4]}, "features is \\[4\\]; need two or more"),
        ({"features": [4, 0]}, "features is \\[4, 0\\]"),
        ({"spacing": [-1.0]}, "spacing is \\[-1.0, -1.0\\]"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
    ],
)
def test_mistakes_are_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        shrink_plans(plans(2), **({"configuration": "full", "name": "Small"} | options))
