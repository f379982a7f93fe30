"""Models Genesis: the law, each switch, and curves and paintings against the paper's own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.views.deformations import deform, nonlinear_intensity

OFF = {"shuffle": 0.0, "nonlinear": 0.0, "paint": 0.0, "outpaint": 0.8}
PAPER = {"shuffle": 0.5, "nonlinear": 0.9, "paint": 0.9, "outpaint": 0.8}
SWITCHES: dict[str, dict[str, float]] = {
    "shuffle": {**OFF, "shuffle": 1.0},
    "nonlinear": {**OFF, "nonlinear": 1.0},
    "inpaint": {**OFF, "paint": 1.0, "outpaint": 0.0},
    "outpaint": {**OFF, "paint": 1.0, "outpaint": 1.0},
}


def keys(samples: int) -> Tensor:
    return torch.tensor([[3, 1, 0, row] for row in range(samples)])


def images(samples: int, *size: int, seed: int = 0) -> Tensor:
    """Uniform on [0, 1], so that the robust range is nearly [0, 1]."""
    return torch.rand(samples, 1, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("knobs", [PAPER, *SWITCHES.values()], ids=["all", *SWITCHES])
def test_law(knobs: dict[str, float], batch: dict[str, Any], law: Callable[..., None]) -> None:
    if knobs["shuffle"] == 1:  # axes of 20 voxels at least, else windows are one voxel wide
        batch["image"] = batch["image"].repeat_interleave(3, dim=-1)
    law(lambda part: {"image": deform(part["image"], part["key"], "v", **knobs)}, batch)


def test_without_any_deformation_nothing_changes() -> None:
    image = images(3, 20, 20)
    assert torch.equal(deform(image, keys(3), "v", **OFF), image)


@pytest.mark.parametrize("knobs", SWITCHES.values(), ids=SWITCHES)
def test_deformations_follow_a_linear_change_of_intensities(knobs: dict[str, float]) -> None:
    """What is defined on [0, 1] acts alike on z-scored MR and on CT: D(a x + b) = a D(x) + b."""
    image = images(4, 24, 24)
    expected = deform(image, keys(4), "v", **knobs)
    assert not torch.equal(expected, image)
    for factor, offset in ((5.0, -2.0), (1000.0, -1000.0)):
        found = deform(image * factor + offset, keys(4), "v", **knobs)
        torch.testing.assert_close((found - offset) / factor, expected, atol=2e-3, rtol=0)


def test_probabilities_are_those_of_the_paper() -> None:
    image, count = images(1, 12, 12).expand(400, -1, -1, -1), keys(400)
    for name, expected in (("nonlinear", 0.9), ("paint", 0.9)):
        made = deform(image, count, "v", **{**OFF, name: expected})
        assert (made != image).flatten(1).any(1).float().mean() == pytest.approx(expected, abs=0.05)
    shuffled = deform(images(400, 20, 20), count, "v", **{**OFF, "shuffle": 0.5})
    changed = (shuffled != images(400, 20, 20)).flatten(1).any(1)
    assert changed.float().mean() == pytest.approx(0.5, abs=0.08)


def paper_curve(values: np.ndarray, points: np.ndarray, falling: bool) -> np.ndarray:
    """100,000 samples of the Bezier curve from (1, 1) to (0, 0); x sorted, or x and y sorted."""
    t = np.linspace(0, 1, 100_000)
    ends = np.array([[0.0, 0.0], points[:2], points[2:], [1.0, 1.0]])
    weights = np.stack([t**3, 3 * t**2 * (1 - t), 3 * t * (1 - t) ** 2, (1 - t) ** 3])
    x, y = ends.T @ weights
    return np.interp(values, np.sort(x), y if falling else np.sort(y))


@pytest.mark.parametrize("falling", [False, True])
def test_curves_equal_those_of_the_paper(falling: bool) -> None:
    random = np.random.default_rng(0)
    values = torch.linspace(0, 1, 500).reshape(1, 1, 20, 25)
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    for _ in range(10):
        points = random.random(4)
        found = nonlinear_intensity(values, zero, one, np.array([[[*points, not falling, 0]]]), 1)
        expected = paper_curve(values.numpy().ravel(), points, falling)
        np.testing.assert_allclose(found.numpy().ravel(), expected, atol=5e-3)
        assert (np.diff(expected) * (-1 if falling else 1) >= -1e-9).all()  # the docstring's claim


def test_beyond_the_robust_range_distances_stay() -> None:
    values = torch.tensor([-3.0, 0, 1, 4]).reshape(1, 1, 2, 2)
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    curve = [0.2, 0.7, 0.4, 0.9]
    rising = nonlinear_intensity(values, zero, one, np.array([[[*curve, 1, 0]]]), 1)
    assert rising.flatten().tolist() == [-3, 0, 1, 4]
    falling = nonlinear_intensity(values, zero, one, np.array([[[*curve, 0, 0]]]), 1)
    assert falling.flatten().tolist() == [4, 1, 0, -3]
    still = nonlinear_intensity(values, zero, one, np.array([[[*curve, 0, 0]]]), 0)
    assert torch.equal(still, values)


def test_a_constant_image_stays_constant_and_finite() -> None:
    image = torch.full((4, 1, 16, 16), -0.7)
    assert torch.allclose(
        deform(image, keys(4), "v", **{**PAPER, "nonlinear": 1, "paint": 1}), image
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("size", [(20, 20), (8, 20, 20)])
def test_a_voxel_that_is_no_number_stays_one_and_harms_no_other_image(
    bad: float, size: tuple[int, ...]
) -> None:
    """The loss of its image is then not finite, and the step is skipped; no index is wrong."""
    image = images(2, *size)
    expected = deform(image, keys(2), "v", **{**PAPER, "nonlinear": 1.0})
    image[0].view(-1)[7] = bad
    found = deform(image, keys(2), "v", **SWITCHES["nonlinear"])
    assert not found[0].isfinite().all()
    assert found[1].isfinite().all()
    found = deform(image, keys(2), "v", **{**PAPER, "nonlinear": 1.0})
    assert torch.equal(found[1], expected[1])


def kept_box(kept: Tensor) -> list[tuple[int, int]]:
    """Begin and end of what holds all kept voxels, per axis."""
    places = kept.nonzero()
    return [(int(p.min()), int(p.max()) + 1) for p in places.T]


@pytest.mark.parametrize("size", [(70, 42), (28, 35, 49)])
def test_in_painting_fills_boxes_of_a_sixth_to_a_third(size: tuple[int, ...]) -> None:
    image = images(16, *size)
    made = deform(image, keys(16), "v", **SWITCHES["inpaint"])
    painted = (made != image)[:, 0]
    shares = painted.flatten(1).float().mean(1)
    d = len(size)
    assert 0 < float(shares[shares > 0].min()) >= 0.9 / 6**d
    assert shares.max() <= 5 / 3**d
    for mask in painted:
        if mask.any():
            assert all(
                b >= 3 and e <= n - 3 for (b, e), n in zip(kept_box(mask), size, strict=True)
            )
    noise = made[:, 0][painted]
    assert noise.min() >= image.min()
    assert noise.max() <= image.max()
    assert noise.std() == pytest.approx(12**-0.5, abs=0.02)  # uniform, not constant


@pytest.mark.parametrize("size", [(70, 42), (28, 35, 49)])
def test_out_painting_keeps_boxes_of_three_to_four_sevenths(size: tuple[int, ...]) -> None:
    image = images(16, *size)
    made = deform(image, keys(16), "v", **SWITCHES["outpaint"])
    kept = (made == image)[:, 0]
    shares = kept.flatten(1).float().mean(1)
    d = len(size)
    assert shares.min() >= (3 / 7) ** d
    assert shares.max() <= 5 * (4 / 7) ** d
    for mask in kept:
        for (begin, end), length in zip(kept_box(mask), size, strict=True):
            assert begin >= 3
            assert end <= length - 3
            assert end - begin >= 3 * length // 7


def test_out_painting_always_keeps_something_and_in_painting_may_paint_nothing() -> None:
    """One more box comes with probability 0.95: of 200 in-paintings about ten have none."""
    image = images(200, 14, 14)
    made = deform(image, keys(200), "v", **SWITCHES["outpaint"])
    assert (made == image).flatten(1).any(1).all()
    made = deform(image, keys(200), "v", **SWITCHES["inpaint"])
    untouched = int((made == image).flatten(1).all(1).sum())
    assert 2 <= untouched <= 22


def test_paintings_are_alike_in_all_channels_and_noise_is_not() -> None:
    image = images(4, 30, 30).expand(-1, 2, -1, -1)
    made = deform(image, keys(4), "v", **SWITCHES["outpaint"])
    painted = made != image
    assert torch.equal(painted[:, 0], painted[:, 1])
    assert not torch.equal(made[:, 0][painted[:, 0]], made[:, 1][painted[:, 1]])
