"""Plans that keep a checkpoint's architecture: sizes, memory, what is kept, what is refused."""

from __future__ import annotations

import copy
import math

import pytest
from networks import checkpoint, configuration, dataset, plans

from nnssl.nnunet.plan_like import find_nearest_patch, plan_like, read_source
from nnssl.nnunet.planned_network import build_planned_network
from nnssl.nnunet.plans import KEEPABLE

PLANNED = configuration([52, 40], [1.0, 1.0], batch=12)
TARGET = plans(c2d=PLANNED)
SMALL = configuration([32, 32], [2.5, 2.0], (4, 8, 8, 8), batch=3)


def like(source_entry, target=TARGET, name="2d", keep=(), channels=1, own=True):
    source = read_source(checkpoint(source_entry, name, own=own))
    found, remarks = plan_like(target, dataset(channels), source, name, "Like", keep)
    return found, found["configurations"][name], remarks


def feature_maps(content, patch) -> float:
    return float(
        build_planned_network(content, "2d", dataset()).compute_conv_feature_map_size(list(patch))
    )


@pytest.mark.parametrize("own", [True, False])
def test_the_architecture_is_the_checkpoints_and_the_rest_the_targets(own: bool):
    before = copy.deepcopy(TARGET)
    found, entry, remarks = like(SMALL, own=own)
    assert entry["architecture"] == SMALL["architecture"]
    assert entry["spacing"] == [1.0, 1.0]
    assert entry["median_image_size_in_voxels"] == [52, 40]
    assert entry["patch_size"] == [56, 40]  # 52 is nearer to 56 than to 48 (ties go up)
    assert (found["plans_name"], entry["data_identifier"]) == ("Like", "Like_2d")
    assert found["dataset_name"] == "Dataset005_Target"
    assert found["foreground_intensity_properties_per_channel"]["0"]["mean"] == 1.0
    assert list(found["configurations"]) == ["2d"]
    assert remarks == []
    assert before == TARGET


def test_the_same_network_gets_the_planned_sizes():
    _, entry, _ = like(configuration([64, 64], [1.0, 1.0], batch=2))
    assert (entry["patch_size"], entry["batch_size"]) == ([52, 40], 12)


@pytest.mark.parametrize("features", [(4, 8, 8), (16, 16, 16), (40, 40, 40), (120, 120, 120)])
@pytest.mark.parametrize("residual", [False, True])
def test_a_step_stays_within_the_planned_memory(features, residual: bool):
    found, entry, remarks = like(configuration([64, 64], [1, 1], features, residual=residual))
    patch, batch = entry["patch_size"], entry["batch_size"]
    planned = feature_maps(TARGET, [52, 40]) * 12
    assert all(size % 4 == 0 for size in patch)
    assert remarks == []
    assert feature_maps(found, patch) * batch <= planned * 1.001
    assert math.prod(patch) * batch <= 52 * 40 * 12
    widest = [size + 4 for size in patch]
    if patch != [52, 40]:
        assert batch == 2
        assert feature_maps(found, widest) * 2 > planned
    elif batch < 12:
        assert feature_maps(found, patch) * (batch + 1) > planned


def test_what_never_fits_is_said():
    target = plans(c2d=configuration([16, 16], [1, 1], (2, 2, 2), batch=2))
    _, entry, remarks = like(configuration([64, 64], [1, 1], (64, 64, 64)), target)
    assert (entry["patch_size"], entry["batch_size"]) == ([8, 8], 2)
    assert "times the memory that the target's plans take" in remarks[0]


def test_nearest_patch():
    assert find_nearest_patch([250, 198, 9], [32, 32, 1], lambda _: True) == [256, 192, 9]
    assert find_nearest_patch([10, 40], [32, 32], lambda _: True) == [64, 64]
    few = find_nearest_patch([256, 128], [32, 32], lambda patch: math.prod(patch) <= 160 * 96)
    assert few == [160, 96]  # the shape stays near the wanted one


def test_a_kept_spacing_keeps_the_patch_in_mm():
    _, entry, _ = like(SMALL, keep=["spacing"])
    assert entry["spacing"] == [2.5, 2.0]
    assert entry["median_image_size_in_voxels"] == [52 / 2.5, 40 / 2.0]
    assert entry["patch_size"] == [24, 24]  # 20.8 and 20 voxels


def test_everything_kept():
    source = configuration([32, 64], [1.0, 1.0], batch=3)
    source.update(normalization_schemes=["CTNormalization"], use_mask_for_norm=[True])
    found, entry, remarks = like(source, keep=KEEPABLE)
    assert (entry["patch_size"], entry["batch_size"]) == ([32, 64], 3)
    assert entry["normalization_schemes"] == ["CTNormalization"]
    assert entry["use_mask_for_norm"] == [True]
    assert found["foreground_intensity_properties_per_channel"]["0"]["mean"] == 7.0
    assert any("axis 1 is 64 voxels, the median image only 40" in remark for remark in remarks)


def test_other_input_channels_are_said_and_cannot_share_normalisation():
    target = plans(c2d=configuration([52, 40], [1.0, 1.0], channels=3))
    _, entry, remarks = like(SMALL, target, channels=3)
    assert len(entry["normalization_schemes"]) == 3
    assert "has 1 input channels, the target 3: fine-tuning adapts the first conv" in remarks[0]
    with pytest.raises(ValueError, match="normalisation cannot be kept: the checkpoint has 1"):
        like(SMALL, target, channels=3, keep=["normalisation"])


def test_three_dimensions_and_another_anisotropy():
    planned = configuration([20, 28, 24], [1.0, 1.0, 1.0])
    source = configuration([16, 16, 16], [5.0, 1.0, 1.0], (4, 8))
    source["architecture"]["arch_kwargs"]["strides"][1] = [1, 2, 2]
    planned["next_stage"] = "3d_cascade_fullres"
    _, entry, remarks = like(source, plans(c3d_lowres=planned), "3d_lowres")
    assert entry["patch_size"] == [20, 28, 24]
    assert "next_stage" not in entry  # the cascade has no plans here
    assert "planned for spacing [5.0, 1.0, 1.0], the target has [1.0, 1.0, 1.0]" in remarks[0]


@pytest.mark.parametrize(
    ("patch", "found"), [([16, 16, 16], "3D network .*2d is 2D"), ([16, 16], "2D network .*is 3D")]
)
def test_another_dimension_is_refused(patch: list[int], found: str):
    source = read_source(checkpoint(configuration(patch, [1.0] * len(patch)), "some"))
    both = plans(c2d=PLANNED, c3d_fullres=configuration([16, 16, 16], [1, 1, 1]))
    other = "2d" if len(patch) == 3 else "3d_fullres"
    with pytest.raises(ValueError, match=found):
        plan_like(both, dataset(), source, other, "Like")


def test_the_name_of_the_targets_plans_is_refused():
    with pytest.raises(ValueError, match="name is 'nnUNetPlans'"):
        plan_like(TARGET, dataset(), read_source(checkpoint(SMALL, "2d")), "2d", "nnUNetPlans")


def broken(part: str) -> dict:
    content = checkpoint(SMALL, "2d")
    if part == "no plans":
        del content["nnssl"]
    elif part == "another configuration":
        content["nnssl"]["configuration"] = "3d_fullres"
    elif part == "no weights":
        content["network_weights"] = {}
    else:
        entry = content["nnssl"]["plans"]["configurations"]["2d"]["architecture"]["arch_kwargs"]
        entry["strides"] = [[1], [2]] if part == "strides" else None
    return content


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("no weights", "incomplete .*no convolution"),
        ("strides", "incomplete .*strides of 1 axes, patch of 2"),
        ("no strides", "incomplete"),
    ],
)
def test_a_checkpoint_that_does_not_describe_itself(part: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_source(broken(part))


@pytest.mark.parametrize("part", ["no plans", "another configuration"])
def test_weights_that_tell_no_plans_show_their_architecture(part: str):
    found, told = read_source(broken(part)), read_source(checkpoint(SMALL, "2d"))
    for source in (found, told):
        source.configuration["architecture"]["arch_kwargs"]["nonlin"] = "torch.nn.LeakyReLU"
    assert found.configuration["architecture"] == told.configuration["architecture"]
    assert (found.name, found.channels, found.strides) == ("2d", told.channels, told.strides)
    with pytest.raises(ValueError, match="the weights tell no normalisation"):
        plan_like(TARGET, dataset(), found, "2d", "Like", ["normalisation"])
