"""Augmentation on the device: each change equals nnU-Net's, drawn as often and as strongly."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.stats import binomtest, ks_2samp

from nnssl.views import stock_augmentation
from nnssl.views.geometry import Placement
from nnssl.views.stock_augmentation import CHANGES, OUTSIDE, StockAugmentation

DRAWS = 4000
TURN = (-np.pi, np.pi)


def keys(count: int) -> torch.Tensor:
    return torch.tensor([(3, 0, 0, sample) for sample in range(count)])


def build(size=(24, 20), turn=TURN, flat=False, masked=()):
    axes = tuple(range(len(size)))
    return StockAugmentation(size, turn, axes, flat, masked, (0, 1, 2))


def image(*size: int, seed: int = 0) -> torch.Tensor:
    smooth = torch.nn.functional.interpolate(
        torch.randn((1, 1, *[max(2, s // 4) for s in size]), generator=torch.manual_seed(seed)),
        size,
        mode="bilinear" if len(size) == 2 else "trilinear",
    )
    return smooth[0]


def stock_transforms(size, turn=TURN, flat=False, masks=(False,)):
    made = nnUNetTrainer.get_training_transforms(
        np.array(size), turn, None, tuple(range(len(size))), flat, use_mask_for_norm=list(masks)
    )
    return made.transforms


@pytest.mark.parametrize("size", [(24, 20), (8, 12, 10)])
@pytest.mark.parametrize(
    ("own", "transform", "parameters", "strength"),
    [
        (
            stock_augmentation._multiply,
            MultiplicativeBrightnessTransform((0.7, 1.3), False),
            {"apply_to_channel": [0], "multipliers": torch.tensor([1.2])},
            1.2,
        ),
        (
            stock_augmentation._change_contrast,
            ContrastTransform((0.7, 1.3), True, False),
            {"apply_to_channel": torch.tensor([0]), "multipliers": torch.tensor([1.25])},
            1.25,
        ),
        (
            stock_augmentation._change_gamma,
            GammaTransform((0.7, 1.5), 0, False, 1, 1),
            {
                "apply_to_channel": torch.tensor([0]),
                "gamma": torch.tensor([0.7]),
                "retain_stats": torch.tensor([True]),
                "invert_image": torch.tensor([False]),
            },
            0.7,
        ),
        (
            stock_augmentation._change_gamma_of_negative,
            GammaTransform((0.7, 1.5), 1, False, 1, 1),
            {
                "apply_to_channel": torch.tensor([0]),
                "gamma": torch.tensor([1.4]),
                "retain_stats": torch.tensor([True]),
                "invert_image": torch.tensor([True]),
            },
            1.4,
        ),
        (
            stock_augmentation._lower_resolution,
            SimulateLowResolutionTransform((0.5, 1), False, True, None),
            {"apply_to_channel": [0], "scales": torch.tensor([[0.6] * 3])},
            0.6,
        ),
    ],
)
def test_a_change_equals_nnunets(own, transform, parameters, strength, size):
    before = image(*size)
    strengths = torch.full((1, len(size)), strength)
    expected = transform._apply_to_image(before.clone(), **parameters)
    assert not torch.allclose(expected, before, atol=1e-2)
    torch.testing.assert_close(own(before[None], strengths)[0], expected, rtol=1e-4, atol=1e-4)


def test_blur_equals_nnunets_away_from_the_border():
    before, sigmas = image(24, 20), [0.6, 0.9]
    transform = GaussianBlurTransform((0.5, 1.0))
    parameters = {"apply_to_channel": torch.tensor([True]), "sigmas": [sigmas]}
    expected = transform._apply_to_image(before.clone(), **parameters)[:, 6:-6, 6:-6]
    found = stock_augmentation._blur(before[None], torch.tensor([sigmas]))[0, :, 6:-6, 6:-6]
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)  # its kernel ends at 3 sigma
    assert (found - before[:, 6:-6, 6:-6]).abs().max() > 0.05


@pytest.mark.parametrize(("size", "raw"), [((24, 20), (38, 36)), ((8, 12, 10), (16, 20, 18))])
def test_geometry_equals_nnunets(size, raw):
    transform = SpatialTransform(
        size,
        0,
        False,
        p_rotation=1,
        rotation=(-0.5, 0.5),
        p_scaling=1,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        border_mode_seg="constant",
        padding_value_seg=OUTSIDE,
    )
    before = image(*raw)
    label = (before > 0).short() + (before > 0.7).short()
    parameters = transform.get_parameters(image=before)
    expected = transform._apply_to_image(before, **parameters)
    affine = np.column_stack([parameters["affine"], np.zeros(len(size))])
    placement = Placement(affine[None], size, raw)
    torch.testing.assert_close(placement.image(before[None])[0], expected, rtol=1e-3, atol=1e-3)
    found = build(size)._cut_labels(label[None], placement)[0]
    same = found == transform._apply_to_segmentation(label, **parameters)
    assert same.float().mean() > 0.995  # ties are broken otherwise
    assert {0, 1, 2} <= set(found.unique().tolist())


def draw_ours(augmentation, channels=2, axes=2):
    """Drawn scales, angles, and for every change the strengths of those samples that have it."""
    found = defaultdict(list)
    for key in keys(DRAWS):
        random = stock_augmentation.generator(key, "augmentation")
        linear = augmentation._draw_affine(random)[:, :2]
        scale = np.sqrt(np.linalg.det(linear))
        found["scale"] += [scale] if abs(scale - 1) > 1e-9 else []
        angle = np.arctan2(linear[1, 0], linear[0, 0])
        found["angle"] += [angle] if abs(angle) > 1e-9 else []
        for change in CHANGES:
            strengths = change.draw(random, channels, axes)
            if strengths is not None:
                found[change.apply.__name__].append(strengths)
    return found


def test_changes_are_drawn_as_nnunet_draws_them():
    """Shares by a binomial test, strengths by Kolmogorov and Smirnov's, against nnU-Net's own."""
    ours, example = draw_ours(build()), {"image": torch.zeros(2, 24, 20)}
    spatial, *others = stock_transforms((24, 20))
    np.random.seed(0)
    torch.manual_seed(0)
    drawn = [spatial.get_parameters(**example)["affine"] for _ in range(DRAWS)]
    affines = [each for each in drawn if each is not None]
    scales = [np.sqrt(np.linalg.det(each)) for each in affines]
    angles = [np.arctan2(each[1, 0], each[0, 0]) for each in affines]
    expected = {
        "scale": [s for s in scales if abs(s - 1) > 1e-9],
        "angle": [a for a in angles if abs(a) > 1e-9],
    }
    for name in expected:
        assert ks_2samp(ours[name], expected[name]).pvalue > 1e-3, name
        assert binomtest(len(ours[name]), DRAWS, 0.2).pvalue > 1e-3, name
    names = ("sigmas", "sigmas", "multipliers", "multipliers", "scales", "gamma", "gamma")
    random = [each for each in others if isinstance(each, RandomTransform)]
    for change, each, name in zip(CHANGES, random, names, strict=True):
        drawn = ours[change.apply.__name__]
        assert binomtest(len(drawn), DRAWS, each.apply_probability).pvalue > 1e-3, change
        values = np.concatenate([d[:, 0] for d in drawn])
        told = [each.transform.get_parameters(**example) for _ in range(len(drawn))]
        theirs = np.concatenate(
            [np.ravel(one[name])[:: None if change.shared else 1] for one in told]
        )
        if name == "scales":
            theirs = theirs[::2]  # one per axis, equal
        assert ks_2samp(values[~np.isnan(values)], theirs).pvalue > 1e-3, change
        share = np.mean(~np.isnan(values))
        assert share == pytest.approx(each.transform.p_per_channel, abs=0.06), change


def test_per_axis_and_shared_strengths():
    random = np.random.default_rng(0)
    noise, blur, *_ = CHANGES
    drawn = next(d for d in (noise.draw(random, 3, 2) for _ in range(200)) if d is not None)
    assert (drawn == drawn[0, 0]).all()
    drawn = next(d for d in (blur.draw(random, 1, 2) for _ in range(200)) if d is not None)
    assert drawn[0, 0] != drawn[0, 1]


@pytest.mark.parametrize(("size", "raw"), [((24, 20), (38, 36)), ((8, 12, 10), (15, 19, 18))])
def test_a_batch_gives_what_its_samples_give(size, raw, monkeypatch):
    monkeypatch.setattr(stock_augmentation, "CHANGES", CHANGES[1:])  # noise has no key
    augmentation = build(size)
    images = torch.stack([image(*raw, seed=s) for s in range(12)])
    labels = (images > 0).short()
    together = augmentation(images, labels, keys(12))
    assert together[0].shape == (12, 1, *size)
    changed = 0
    for row in range(12):
        alone = augmentation(images[row][None], labels[row][None], keys(12)[row][None])
        torch.testing.assert_close(together[0][row], alone[0][0], rtol=1e-4, atol=1e-4)
        assert (together[1][row] == alone[1][0]).float().mean() > 0.99
        centre = Placement(np.eye(len(size), len(size) + 1)[None], size, raw).image(
            images[row][None]
        )
        changed += not torch.allclose(together[0][row], centre[0])
    assert changed >= 10  # mirrored, if nothing else


def test_all_axes_are_mirrored_half_the_time(monkeypatch):
    monkeypatch.setattr(stock_augmentation, "CHANGES", ())
    monkeypatch.setattr(stock_augmentation, "ROTATED", 0)
    monkeypatch.setattr(stock_augmentation, "SCALED", 0)
    ramp = torch.arange(6.0)[:, None] * 10 + torch.arange(4.0)
    images = ramp.expand(400, 1, 6, 4)
    found, labels = build((6, 4))(images, (images % 3).short(), keys(400))
    assert torch.equal(labels, (found % 3).short())  # image and label together
    first, second = (found[:, 0, 0, 0] > found[:, 0, 5, 0]), (found[:, 0, 0, 0] > found[:, 0, 0, 3])
    for mirrored in (first, second, first ^ second):
        assert binomtest(int(mirrored.sum()), 400, 0.5).pvalue > 1e-3


def test_outside_is_background_and_masked_where_the_plan_says():
    images = torch.ones(8, 2, 38, 36)
    labels = torch.ones(8, 1, 38, 36, dtype=torch.int16)
    labels[..., :19, :] = OUTSIDE
    found, cut = build(masked=(1,))(images, labels, keys(8))
    assert set(cut.unique().tolist()) == {0, 1}
    assert (found[:, 1][cut[:, 0] == 0] == 0).all()
    assert (found[:, 0][cut[:, 0] == 0] != 0).any()


def test_a_flat_patch_keeps_its_first_axis(monkeypatch):
    """nnU-Net's dummy 2D augmentation."""
    monkeypatch.setattr(stock_augmentation, "CHANGES", CHANGES[4:5])
    planes = torch.arange(4.0)[:, None, None].expand(64, 1, 4, 36, 36)
    augmentation = StockAugmentation((4, 20, 20), TURN, (1, 2), True, (), (0, 1))
    found, _ = augmentation(planes, None, keys(64))
    middle = found[..., 6:-6, 6:-6]
    torch.testing.assert_close(middle, planes[..., :8, :8].contiguous(), rtol=1e-4, atol=1e-4)
    affines = [augmentation._draw_affine(np.random.default_rng(s)) for s in range(50)]
    assert any(not np.allclose(a, np.eye(3, 4)) for a in affines)
    assert all(np.allclose(a[0], [1, 0, 0, 0]) for a in affines)


def test_rows_of_weak_views_without_labels():
    images = torch.stack([image(38, 36, seed=s) for s in range(4)])
    found, labels = build()(images, None, keys(4))
    assert labels is None
    assert found.shape == (4, 1, 24, 20)
