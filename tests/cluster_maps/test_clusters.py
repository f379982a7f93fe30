"""Features, k-means and numbers behind cluster maps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from nnssl.cluster_maps.features import HandcraftedFeatures, TransformerFeatures, upsample, windows
from nnssl.cluster_maps.maps import find_body, k_means
from nnssl.cluster_maps.recipe import ClusterRecipe
from nnssl.modules.panels import Panel, Row
from nnssl.training.pictures import draw_panel, save_panel


def whole(features: HandcraftedFeatures, image: np.ndarray) -> np.ndarray:
    """(F, Z, Y, X), put together from the windows."""
    parts = list(features.windows(image))
    result = np.full((len(parts[0][1]), *image.shape[1:]), np.nan)
    for window, part in parts:
        result[(slice(None), *window)] = part
    return result


def test_handcrafted_features_of_a_parabola_have_closed_forms() -> None:
    """I = x^2 + 3y in a slice: the gradient is (2x, 3), the Laplacian 2, smoothing adds sigma^2."""
    y, x = np.meshgrid(np.arange(41.0) - 20, np.arange(41.0) - 20, indexing="ij")
    image = (x**2 + 3 * y)[None, None].astype(np.float32)
    found = whole(HandcraftedFeatures([2.0], [1.0, 1.0], 0.5), image)[:, 0, 20, 24]
    smooth, gradient, laplacian, _, height, width = found
    assert smooth == pytest.approx(16 + 4, rel=1e-2)
    assert gradient == pytest.approx(2 * np.hypot(8, 3), rel=1e-2)
    assert laplacian == pytest.approx(4 * 2, rel=1e-2)
    assert (height, width) == pytest.approx((0, 2 * 24.5 / 41 - 1), abs=1e-6)


def test_slabs_do_not_show_and_slices_of_2d_plans_are_apart(monkeypatch: Any) -> None:
    image = np.random.default_rng(0).normal(size=(2, 19, 12, 12)).astype(np.float32)
    solid = HandcraftedFeatures([1.0], [2.0, 1.0, 1.0], 1.0)
    flat = HandcraftedFeatures([1.0], [1.0, 1.0], 1.0)
    assert solid.sigmas == [[0.5, 1.0, 1.0]]
    slabs, alone = whole(solid, image), whole(flat, image[:, :1])
    np.testing.assert_allclose(whole(flat, image)[:6, :1], alone[:6], rtol=1e-5)
    monkeypatch.setattr("nnssl.cluster_maps.features.SLAB", 100)
    np.testing.assert_allclose(slabs, whole(solid, image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dimension", [2, 3])
def test_upsampling_follows_the_edges_of_the_image(dimension: int) -> None:
    size = (32,) * dimension
    guide = torch.zeros(1, 1, *size)
    guide[..., 13:] = 5.0  # an edge inside the second cell of eight voxels
    feature = interpolate(guide, (4,) * dimension, mode="area")
    wanted = (guide > 0).float() * 5
    errors = {
        kind: float((upsample(feature, guide, kind) - wanted).abs().mean())  # type: ignore[arg-type]
        for kind in ("linear", "bilateral")
    }
    assert errors["bilateral"] < 0.6 * errors["linear"]
    constant = upsample(torch.full_like(feature, 3.0), guide, "bilateral")
    torch.testing.assert_close(constant, torch.full_like(guide, 3.0))


def test_windows_cover_every_voxel() -> None:
    for shape, patch in (((5, 9, 7), (4, 4)), ((11, 9, 7), (4, 4, 8))):
        seen = np.zeros(shape, int)
        for window in windows(shape, patch):
            seen[window] += 1
        assert seen.min() >= 1


def test_k_means_finds_planted_groups_in_order() -> None:
    random = np.random.default_rng(0)
    planted = np.array([[0.0, 5], [4, 0], [8, 5]])
    points = planted[random.integers(0, 3, 3000)] + random.normal(size=(3000, 2)) * 0.3
    centres = k_means(points, 3, seed=1)
    np.testing.assert_allclose(centres, planted, atol=0.15)
    np.testing.assert_array_equal(centres, k_means(points, 3, seed=1))


def test_body_is_filled_and_air_is_outside() -> None:
    image = np.zeros((2, 40, 40), np.float32)
    image[:, 8:32, 8:32] = 1.0
    image[:, 16:24, 16:24] = 0.0  # dark, but inside
    found = find_body(image)
    assert found[:, 8:32, 8:32].all()
    assert not found[:, :6].any()
    assert find_body(np.ones((2, 8, 8))).all()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"clusters": 1}, "clusters = 1 must be an integer from 2 to 30000"),
        ({"samples": 50}, "samples: found 50"),
        ({"scales": (0.0,)}, "scales"),
        ({"source": "self"}, "needs --checkpoint"),
        ({"checkpoint": "nowhere.pth"}, "nowhere.pth does not exist"),
    ],
)
def test_bad_recipes_are_named(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ClusterRecipe(**knobs)


def test_dino_reads_a_local_file_and_says_what_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    timm = pytest.importorskip("timm")
    model, file = "vit_tiny_patch16_224", tmp_path / "weights.pth"
    torch.manual_seed(0)
    weights = timm.create_model(model).state_dict()
    torch.save(weights, file)
    features = TransformerFeatures(model, str(file), 64, "linear")
    loaded = features.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in loaded.items())
    image = np.random.default_rng(0).normal(size=(1, 2, 40, 30)).astype(np.float32)
    parts = list(features.windows(image))
    assert [part.shape for _, part in parts] == [(192, 1, 40, 30)] * 2
    assert not np.allclose(parts[0][1], parts[1][1])
    file.write_text("no weights")
    with pytest.raises(ValueError, match="--source handcrafted"):
        TransformerFeatures(model, str(file), 64, "linear")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm"):
        TransformerFeatures(model, str(file), 64, "linear")


def test_a_file_for_dino_is_a_transformer_and_runs_no_code(tmp_path: Path, make_unet: Any) -> None:
    pytest.importorskip("timm")
    file, mark = tmp_path / "weights.pth", tmp_path / "executed"
    torch.save(make_unet(2).state_dict(), file)
    with pytest.raises(ValueError, match="it holds another network"):
        TransformerFeatures("vit_tiny_patch16_224", str(file), 64, "linear")

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    torch.save({"model": {}, "more": Payload()}, file)
    with pytest.raises(ValueError, match="source dino: the weights"):
        TransformerFeatures("vit_tiny_patch16_224", str(file), 64, "linear")
    assert not mark.exists()


def test_coloured_panels_keep_their_colours_and_order(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 4, 5, 3)
    images[1, 2, :, :, 0] = 1.0  # red at the bottom right
    names = ["a $case$", "b", "c"]
    figure = draw_panel(Panel([Row("image", images[0]), Row("clusters", images[1])], names), "run")
    axis = figure.axes[0]
    drawn = {tuple(each.get_extent()[:4:3]): each.get_array() for each in axis.images}
    assert len(drawn) == 6
    right = max(drawn)[0]
    low = {place for place in drawn if place[0] == right}
    assert np.asarray(drawn[max(low)]).reshape(-1, 3).tolist() == [[1, 0, 0]] * 20
    assert not np.asarray(drawn[min(low)]).any()
    assert [each.get_text() for each in axis.get_yticklabels()] == ["image", "clusters"]
    assert [each.get_text() for each in axis.get_xticklabels()] == [r"a \$case\$", "b", "c"]
    save_panel(Panel([Row("error", images[1, ..., 0], "of what")]), tmp_path / "error.png")
    assert (tmp_path / "error.png").stat().st_size > 1000
