"""RandomView: the law, the size of the patch, dense_targets, the original, bad parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.modules.grids import sample
from nnssl.views import RandomView, View
from nnssl.views.geometry import place

PLAIN: dict[str, Any] = {
    "rotation": 0,
    "scale": (1, 1),
    "stretch": 1,
    "shift": 0,
    "flip": 0,
    **dict.fromkeys(
        (
            "noise",
            "blur",
            "brightness",
            "contrast",
            "low_resolution",
            "gamma",
            "gamma_inverted",
        )
    ),
}


def random_batch(raw_patch: tuple[int, ...], samples: int = 2) -> dict[str, Any]:
    """Patches of one channel without dense_targets."""
    return {
        "image": torch.randn(samples, 1, *raw_patch, generator=torch.Generator().manual_seed(0)),
        "key": torch.tensor([[3, 0, 0, row] for row in range(samples)]),
    }


def flat(views: Mapping[str, View]) -> dict[str, Tensor]:
    """All tensors of all views by name."""
    parts: dict[str, Tensor] = {}
    for name, view in views.items():
        parts |= {f"{name} image": view.image, f"{name} matrix": view.matrix}
        parts |= {f"{name} {key}": item for key, item in view.dense_targets.items()}
    return parts


@pytest.mark.parametrize("size_fraction", [1.0, 0.5])
def test_law(
    size_fraction: float,
    batch: dict[str, Any],
    spacing: tuple[float, ...],
    law: Callable[..., None],
) -> None:
    group = RandomView(size_fraction=size_fraction)
    patch_size = (6, 10, 8)[: len(spacing)]
    law(lambda b: flat(group(b, "global", patch_size, spacing)), batch)


def test_names_sizes_and_types(batch: dict[str, Any], spacing: tuple[float, ...]) -> None:
    patch_size = (7, 10, 8)[: len(spacing)]
    views = RandomView(count=3, size_fraction=0.5)(batch, "local", patch_size, spacing)
    assert list(views) == ["local_0", "local_1", "local_2"]
    size = tuple(round(length * 0.5) for length in patch_size)
    for view in views.values():
        assert view.image.shape == (*batch["image"].shape[:2], *size)
        assert view.matrix.shape == (5, len(spacing), len(spacing) + 1)
        assert view.matrix.dtype == torch.float32
        assert view.dense_targets["clusters"].shape == (5, *size)
    assert not torch.equal(views["local_0"].matrix, views["local_1"].matrix)


@pytest.mark.parametrize(("patch_size", "raw_patch"), [((8, 8), (12, 13)), ((4, 6, 5), (9, 6, 8))])
def test_with_all_ranges_off_a_view_is_the_centre_of_the_raw_patch(
    patch_size: tuple[int, ...], raw_patch: tuple[int, ...]
) -> None:
    batch, spacing = random_batch(raw_patch), (2.0, 1.0, 1.0)[: len(patch_size)]
    view = RandomView(count=1, **PLAIN)(batch, "global", patch_size, spacing)["global_0"]
    box = tuple(
        slice((p - c) // 2, (p - c) // 2 + c) for p, c in zip(raw_patch, patch_size, strict=True)
    )
    wanted = batch["image"][(..., *box)]
    assert torch.equal(view.image, wanted)
    assert view.image.untyped_storage().data_ptr() != batch["image"].untyped_storage().data_ptr()
    read = sample(batch["image"], view.matrix, patch_size)
    torch.testing.assert_close(read, wanted, atol=1e-5, rtol=0)


def test_the_original_comes_first_without_any_change() -> None:
    batch = random_batch((20, 22))
    views = RandomView(original_first=True)(batch, "global", (12, 12), (1, 1))
    assert torch.equal(views["global_0"].image, batch["image"][:, :, 4:16, 5:17])
    assert not torch.equal(views["global_1"].image, views["global_0"].image)
    same = RandomView()(batch, "global", (12, 12), (1, 1))["global_1"]
    assert torch.equal(same.image, views["global_1"].image)


def test_dense_targets_move_with_the_geometry_and_see_no_intensity() -> None:
    """A dense_target that is the image itself: both tell the same story after all moves."""
    batch = random_batch((30, 30), samples=8)
    steps = torch.arange(5).repeat_interleave(6) * 10
    batch["dense_targets"] = {"steps": (steps[:, None] * 5 + steps).expand(8, -1, -1).contiguous()}
    batch["image"] = batch["dense_targets"]["steps"].unsqueeze(1).float()
    geometry_only = {**PLAIN, "rotation": 30, "scale": (0.7, 1.6), "flip": 0.5, "shift": 0.2}
    view = RandomView(count=1, **geometry_only)(batch, "a", (24, 24), (1, 1))["a_0"]
    known = view.dense_targets["steps"]
    assert set(known.unique().tolist()) == {-1, *batch["dense_targets"]["steps"].unique().tolist()}
    agree = (view.image[:, 0] - known).abs() < 1e-3
    assert agree[known >= 0].float().mean() > 0.6  # all but the edges of the 6 x 6 squares
    loud = {**geometry_only, "brightness": (1, 2, 2), "noise": (1, 1, 1)}
    again = RandomView(count=1, **loud)(batch, "a", (24, 24), (1, 1))["a_0"]
    assert torch.equal(again.dense_targets["steps"], known)
    assert not torch.equal(again.image, view.image)


@pytest.mark.parametrize("size_fraction", [1.0, 0.6])
@pytest.mark.parametrize(
    ("patch_size", "spacing"),
    [((40, 32), (1.0, 1.5)), ((20, 24, 18), (1.0, 1.0, 2.0)), ((8, 30, 30), (6.0, 1.0, 1.0))],
)
def test_patch_size_is_just_large_enough(
    patch_size: tuple[int, ...], spacing: tuple[float, ...], size_fraction: float
) -> None:
    """No corner of 3000 views leaves the patch; a patch smaller by 3 voxels is left on each axis.

    The scale is held at its largest, so that draws come close to the bound.
    """
    group = RandomView(
        **{**PLAIN, "rotation": 25, "scale": (1.2, 1.2), "flip": 0.5},
        size_fraction=size_fraction,
    )
    raw_patch = group.raw_patch_size(patch_size, spacing)
    assert _reach(group, raw_patch, patch_size, spacing).max() <= 1 + 1e-5
    smaller = tuple(length - 3 for length in raw_patch)
    assert (_reach(group, smaller, patch_size, spacing) > 1).all()


def test_no_view_leaves_the_patch_with_the_default_ranges() -> None:
    for fraction in (1.0, 0.5):
        group = RandomView(size_fraction=fraction)
        raw_patch = group.raw_patch_size((32, 32), (1, 1))
        assert 0.8 < _reach(group, raw_patch, (32, 32), (1, 1)).max() <= 1 + 1e-5


def _reach(
    group: RandomView,
    raw_patch: tuple[int, ...],
    patch_size: tuple[int, ...],
    spacing: tuple[float, ...],
) -> Tensor:
    """Farthest normalised coordinate of 3000 views' corners on each axis; 1 is the patch's edge."""
    keys = torch.tensor([[3, 0, 0, row] for row in range(3000)])
    placement = place(
        group.geometry, keys, "a", group.size(patch_size), raw_patch, patch_size, spacing
    )
    return placement.matrix(torch.device("cpu")).abs().sum(-1).amax(0)


def test_patch_size_without_ranges_is_the_view() -> None:
    assert RandomView(**PLAIN).raw_patch_size((40, 32), (1, 3)) == (40, 32)
    assert RandomView(**PLAIN, size_fraction=0.5).raw_patch_size((40, 32), (1, 3)) == (20, 16)
    shrunk = {**PLAIN, "scale": (0.5, 0.5)}
    assert RandomView(**shrunk).raw_patch_size((40, 32), (1, 3)) == (20, 16)
    assert RandomView(**shrunk, original_first=True).raw_patch_size((40, 32), (1, 3)) == (40, 32)


def test_autocast_changes_nothing() -> None:
    batch = random_batch((20, 22))
    loud = RandomView(blur=(1, 1, 1), low_resolution=(1, 0.5, 0.5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = flat(loud(batch, "global", (12, 12), (1, 1)))
    for name, item in flat(loud(batch, "global", (12, 12), (1, 1))).items():
        assert torch.equal(item, inside[name])


def test_constant_images_give_finite_views() -> None:
    batch = {**random_batch((20, 22)), "image": torch.full((2, 1, 20, 22), 3.0)}
    for view in RandomView()(batch, "global", (12, 12), (1, 1)).values():
        assert view.image.isfinite().all()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"count": 0}, "count = 0 must be an integer of at least 1"),
        ({"count": 1.5}, "count = 1.5"),
        ({"count": True}, "count = True"),
        ({"size_fraction": 0}, "size_fraction = 0"),
        ({"rotation": -1}, "rotation = -1 must be a number from 0 to 180"),
        ({"rotation": "15"}, "rotation = '15'"),
        ({"scale": (1.2, 0.8)}, r"scale = \(1.2, 0.8\) .*the smaller first"),
        ({"scale": [0, 1]}, "scale = "),
        ({"scale": 1.0}, "scale = 1.0"),
        ({"stretch": 0.9}, "stretch = 0.9"),
        ({"shift": -0.1}, "shift = -0.1"),
        ({"shift": float("nan")}, "shift = nan"),
        ({"flip": 1.5}, "flip = 1.5"),
        ({"flip": [0.5, 0.5]}, r"flip = \[0.5, 0.5\] .*or a list, each an integer"),
        ({"flip": [3]}, r"flip = \[3\]"),
        ({"rotate_coarse": "yes"}, "rotate_coarse = 'yes' must be true or false"),
        ({"original_first": 1}, "original_first = 1"),
        ({"noise": [0.5, 0.1]}, r"noise = \[0.5, 0.1\] must be a list \[a number"),
        ({"noise": []}, r"noise = \[\]"),
        ({"noise": 0}, "noise = 0"),
        ({"noise": [1.5, 0, 1]}, r"noise = \[1.5, 0, 1\]"),
        ({"noise": [0.5, 0.3, 0.1]}, "noise = .*the smaller first"),
        ({"noise": [0.5, -0.1, 0.1]}, "noise = "),
        ({"gamma": (0.5, 0.0, 1)}, "gamma = "),
        ({"gamma": (2, 0.7, 1.5)}, "gamma = "),
        ({"low_resolution": [0.5, 0.5, 1.5]}, "low_resolution = .*from 0 to 1"),
        ({"blur": [0.5, float("nan"), 1]}, "blur = "),
        ({"blur": ["often", 0, 1]}, "blur = "),
    ],
)
def test_bad_parameters_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomView(**knobs)


@pytest.mark.parametrize(
    ("patch_size", "spacing", "message"),
    [
        ((8, 8, 8), (1, 1), "patch_size is .*allowed are 2 numbers above 0"),
        ((8, 8), (1, 1, 1), "spacing is .*allowed are 2"),
        ((8, 0), (1, 1), "patch_size is"),
        ((8, 8), (1, -1), "spacing is"),
    ],
)
def test_what_does_not_fit_the_image_is_refused(
    patch_size: tuple[int, ...], spacing: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RandomView()(random_batch((12, 12)), "global", patch_size, spacing)
    with pytest.raises(ValueError, match=r"flip is .*axes 0 to 1"):
        RandomView(flip=[2]).raw_patch_size((8, 8), (1, 1))


def test_it_takes_plain_values_for_every_knob() -> None:
    knobs = inspect.signature(RandomView).parameters.values()
    plain = {
        knob.name: list(knob.default) if isinstance(knob.default, tuple) else knob.default
        for knob in knobs
    }
    assert RandomView(**plain).raw_patch_size((8, 8), (1, 1)) == RandomView().raw_patch_size(
        (8, 8), (1, 1)
    )


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives(batch: dict[str, Any], spacing: tuple[float, ...]) -> None:
    """All but the noise, whose fields are drawn where they are needed."""
    group, patch_size = RandomView(noise=None), (6, 10, 8)[: len(spacing)]
    dense_targets = {name: item.cuda() for name, item in batch["dense_targets"].items()}
    on_gpu = {**batch, "image": batch["image"].cuda(), "dense_targets": dense_targets}
    found = flat(group(on_gpu, "global", patch_size, spacing))
    for name, item in flat(group(batch, "global", patch_size, spacing)).items():
        assert found[name].device.type == "cuda"
        torch.testing.assert_close(found[name].cpu(), item, atol=1e-4, rtol=1e-4)
    noisy = RandomView(noise=(1, 0.1, 0.1))(on_gpu, "global", patch_size, spacing)["global_0"]
    assert noisy.image.isfinite().all()
