"""Thumbnails: the same image under another name is found, another patient's is not."""

from __future__ import annotations

from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from nnssl.data import thumbnails as module
from nnssl.data.copies import (
    THRESHOLD,
    find_copies,
    is_beyond_likeness,
    load_case_thumbnails,
    make_signatures,
    measure_likeness,
)
from nnssl.data.thumbnails import make_thumbnail
from nnssl.nnunet.images import CaseError

PATIENTS = [*range(1, 6), 74, 76]  # ACDC's patients 74 and 76 are one


def volume(seed: int, shape: tuple[int, int, int] = (10, 48, 40)) -> np.ndarray:
    """(1, Z, Y, X): blobs."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, (1, 2, 2))[None].astype(np.float32)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    a, b = (make_thumbnail(image).astype(np.float64) for image in (one, other))
    return float(a @ b)


def biased(image: np.ndarray) -> np.ndarray:
    """A smooth field of a factor up to 3 over the intensities above their minimum."""
    ramp = np.linspace(0.5, 1.5, image.shape[2])[:, None] * np.linspace(1, 2, image.shape[3])
    return (image - image.min()) * ramp


@pytest.mark.parametrize(
    "change",
    [
        lambda image: 1000 * image + 5,
        lambda image: np.exp(image),
        biased,
        lambda image: ndimage.zoom(image, (1, 1, 1.3, 1.3), order=1),
        lambda image: image + np.random.default_rng(1).normal(0, 0.02, image.shape),
    ],
    ids=["scaled", "monotone", "biased", "resampled", "noisy"],
)
def test_a_changed_copy_is_recognised(change):
    assert correlation(volume(0), change(volume(0))) > THRESHOLD


def test_different_images_are_not():
    images = np.stack([make_thumbnail(volume(seed)) for seed in range(12)])
    assert find_copies(images[:6], images[6:], flips=True) == []


def of_one_template(seed: int) -> np.ndarray:
    """Registered brains without skulls, as it were: one shape, and a part of one's own."""
    return volume(1) + 0.45 * volume(seed)


def test_different_people_of_one_template_are_told_from_copies():
    people = np.stack([make_thumbnail(of_one_template(seed)) for seed in range(10, 18)])
    likeness = measure_likeness(people, [*"aabbccdd"])
    pairs = find_copies(people[:6], make_signatures(people[2:]), flips=True)
    assert max(each.correlation for each in pairs if each.query != each.candidate + 2) > THRESHOLD
    assert likeness.min() > THRESHOLD
    for each in pairs:
        found = is_beyond_likeness(each.correlation, likeness[each.query])
        assert found is (each.query == each.candidate + 2)
    changed = make_thumbnail(biased(of_one_template(10)) ** 0.8)
    (best,) = (c for c in find_copies(changed[None], people, flips=True) if c.candidate == 0)
    assert is_beyond_likeness(best.correlation, likeness[0])


def test_likeness_is_of_other_people_and_knows_two_copies_under_another_name():
    images = [volume(seed) for seed in range(8)]
    images[1:4] = [images[0]] * 3
    thumbnails = np.stack([make_thumbnail(image) for image in images])
    assert measure_likeness(thumbnails, [*"abccdefg"])[0] > 0.99  # three copies: not told apart
    assert measure_likeness(thumbnails, [*"aacc" + "defg"])[0] < 0.5
    assert measure_likeness(thumbnails[:2], [*"ab"]).tolist() == [0, 0]
    assert is_beyond_likeness(THRESHOLD, 0.59)


def test_the_order_of_channels_does_not_matter():
    channels = [volume(seed) for seed in range(3)]
    assert correlation(np.concatenate(channels), np.concatenate(channels[::-1])) > 0.999
    assert correlation(np.concatenate(channels), volume(7).repeat(3, 0)) < THRESHOLD


def test_mirrored_images_are_found_if_asked_for():
    images = [volume(seed) for seed in range(3)]
    plain = np.stack([make_thumbnail(image) for image in images])
    mirrored = np.stack([make_thumbnail(image[:, ::-1, :, ::-1]) for image in images[1:]])
    assert find_copies(mirrored, plain, flips=False) == []
    found = find_copies(mirrored, plain, flips=True)
    assert [(match.query, match.candidate) for match in found] == [(0, 1), (1, 2)]
    assert found[0].correlation == pytest.approx(1, abs=0.01)


def test_a_cell_is_the_mean_of_its_voxels_whatever_the_shape():
    """27 x 12 pixels in 24 x 24 cells: cells share voxels; the overall mean is kept."""
    image = np.random.default_rng(2).normal(size=(1, 1, 27, 12))
    cells = module._average_cells(image)
    assert cells.shape == (1, *module.CELLS)
    assert cells.mean() == pytest.approx(image.mean(), rel=1e-5)
    assert module._average_cells(np.full((1, 9, 30, 31), 4.0)) == pytest.approx(4)


def test_a_constant_image_resembles_nothing():
    empty = make_thumbnail(np.full((1, 9, 30, 30), 0.3, np.float32))
    assert not empty.any()
    assert find_copies(empty[None], empty[None], flips=True) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "Dataset001_Made" / "plans_2d"
    made.mkdir(parents=True)
    for seed in range(3):
        blosc2.asarray(volume(seed), urlpath=str(made / f"case{seed}.b2nd"))
    return made


def test_thumbnails_are_kept_until_an_image_changes(folder, monkeypatch):
    cache = folder.parent / "nnssl" / "plans_2d" / "thumbnails.npz"
    made: list[str] = []
    really = module.read_thumbnail
    monkeypatch.setattr(
        module, "read_thumbnail", lambda file: made.append(file.stem) or really(file)
    )
    first = load_case_thumbnails(folder, ["case0", "case1"])
    assert np.array_equal(load_case_thumbnails(folder, ["case1", "case0"]), first[::-1])
    assert made == ["case0", "case1"]
    (folder / "case1.b2nd").unlink()
    blosc2.asarray(volume(5, (11, 40, 40)), urlpath=str(folder / "case1.b2nd"))
    changed = load_case_thumbnails(folder, ["case0", "case1", "case2"])
    assert made[2:] == ["case1", "case2"]
    assert not np.array_equal(changed[1], first[1])
    cache.write_bytes(b"damaged")
    assert np.array_equal(load_case_thumbnails(folder, ["case0"]), first[:1])
    assert [path.name for path in cache.parent.iterdir()] == ["thumbnails.npz"]


def test_what_is_written_grows_no_faster_than_the_number_of_images(folder, monkeypatch):
    """Many images: now and then all thumbnails are written, so that a killed run keeps most."""
    written = []
    monkeypatch.setattr(module, "SAVE_EVERY", 2)
    monkeypatch.setattr(module, "_write_cache", lambda _, known: written.append(len(known)))
    files = {f"case{number}": folder / "case0.b2nd" for number in range(60)}
    module.load_thumbnails(files, folder / "cache.npz", read=lambda _: np.zeros(1, np.float16))
    assert written[0] == 2
    assert written[-1] == 60
    assert sum(written) <= 3 * 60


def test_a_missing_or_damaged_image_is_named(folder):
    with pytest.raises(CaseError, match="case9"):
        load_case_thumbnails(folder, ["case9"])
    (folder / "case0.b2nd").write_bytes(b"nothing")
    with pytest.raises(CaseError, match=r"case0\.b2nd"):
        load_case_thumbnails(folder, ["case0"])


@pytest.fixture(scope="module")
def acdc(shared_data: Path) -> list[tuple[int, np.ndarray]]:
    """Patient and image (1, Z, Y, X) of both frames of seven patients."""
    root = shared_data / "ACDC" / "training"
    if not root.is_dir():
        pytest.skip(f"no ACDC at {root}")
    return [
        (patient, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))[None])
        for patient in PATIENTS
        for file in sorted((root / f"patient{patient:03}").glob("*_frame??.nii.gz"))
    ]


def test_real_patients_are_told_apart_and_both_frames_of_one_recognised(acdc):
    made = np.stack([make_thumbnail(image) for _, image in acdc])
    patients = np.array([76 if patient == 74 else patient for patient, _ in acdc])
    same = patients[:, None] == patients
    correlations = made.astype(np.float32) @ made.astype(np.float32).T
    assert correlations[same].min() > THRESHOLD + 0.05
    assert correlations[~same].max() < THRESHOLD - 0.2


def test_a_real_image_without_its_bias_field_at_another_resolution_is_recognised(acdc):
    """N4 divides by a smooth field."""
    for _, image in acdc[:3]:
        coarse = ndimage.zoom(image, (1, 1, 0.6, 0.6), order=1).astype(np.float32)
        assert correlation(image, biased(coarse)) > THRESHOLD + 0.05
