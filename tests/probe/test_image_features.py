"""Features of images: tiles cover everything, and a classifier finds lesions with them."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from networks import checkpoint, configuration, dataset

from nnssl.cli.features import main as features
from nnssl.nnunet.checkpoint import save_atomically
from nnssl.probe.image_features import cut_tiles


@pytest.mark.parametrize("size", [(4, 6), (2, 4, 6)])
def test_tiles_cover_the_image(size):
    image = torch.arange(3 * 10 * 9).reshape(1, 3, 10, 9).float()
    seen = torch.zeros_like(image)
    for (z, y, x), tile in cut_tiles(image, size):
        depth = 1 if len(size) == 2 else size[0]
        where = (slice(None), slice(z, z + depth), slice(y, y + size[-2]), slice(x, x + size[-1]))
        assert torch.equal(tile, image[where])
        seen[where] = 1
    assert seen.all()
    ((begin, tile),) = cut_tiles(image[:, :1, :2, :2], size)
    assert begin == [0, 0, 0]
    assert tile.shape[-2:] == size[-2:]
    assert tile.sum() == image[:, :1, :2, :2].sum()


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_linear_classifier_finds_lesions(tmp_path, dimension):
    """Grading of images by a logistic regression on features of a network that nobody trained."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    entry = configuration((8, 16, 16)[-dimension:], (1, 1, 1)[-dimension:])
    kind = "resample_data_or_seg_to_shape"
    for part in ("data", "seg", "probabilities"):
        entry[f"resampling_fn_{part}"] = kind
        entry[f"resampling_fn_{part}_kwargs"] = {
            "is_seg": part == "seg", "order": 1, "order_z": 0, "force_separate_z": None,
        }  # fmt: skip
    content = checkpoint(entry, "2d" if dimension == 2 else "3d_fullres")
    content["nnssl"]["plans"] |= {
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
    }
    content["init_args"] = {"dataset_json": {**dataset(), "file_ending": ".nii.gz"}}
    save_atomically(content, tmp_path / "run" / "checkpoint_final.pth")
    (tmp_path / "images").mkdir()
    generator, grades = np.random.default_rng(0), {}
    for number in range(16):
        grade = number % 2
        image = generator.normal(size=(8, 24, 24))
        image += 8 * grade * (generator.random(image.shape) < 0.02)
        name = f"eye{number:02}"
        grades[name] = grade
        volume = sitk.GetImageFromArray(image.astype(np.float32))
        sitk.WriteImage(volume, str(tmp_path / "images" / f"{name}_0000.nii.gz"))
    output = tmp_path / "features.npz"
    features([str(tmp_path / "run"), "-i", str(tmp_path / "images"), "-o", str(output)])
    read = np.load(output)
    tiles = 16 * 4 * (8 if dimension == 2 else 1)  # 24 x 24 in tiles of 16 x 16
    assert read["stage_2"].shape == (tiles, 2 * 8)
    assert read["centre"].max() <= 24
    names = sorted(grades)
    stage = np.concatenate([read[f"stage_{number}"] for number in range(3)], 1)
    x = np.stack([stage[read["case"] == name].mean(0) for name in names])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    scores = cross_val_score(classifier, x, [grades[name] for name in names], cv=4)
    assert scores.mean() > 0.9
    with pytest.raises(SystemExit, match="holds no image"):
        features([str(tmp_path / "run"), "-i", str(tmp_path), "-o", str(output)])
