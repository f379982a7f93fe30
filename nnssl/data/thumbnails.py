"""Thumbnails of images, by which copies under another name are found; made once and cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage, stats

from nnssl.common.files import DAMAGED, atomic_path, stamp_file
from nnssl.common.parallel import for_each
from nnssl.nnunet.images import CaseError, open_image
from nnssl.nnunet.paths import cache_places

CELLS = (8, 24, 24)  # of a thumbnail, array order
SMOOTH = (0.75, 1.5, 1.5)  # what is smoother than this many cells, such as a bias field, is removed
RECIPE = np.array([*CELLS, *SMOOTH], float)  # a cache of another one is made anew
MANY = 500  # images to read, for which it pays to start processes
SAVE_EVERY = 2000  # new thumbnails at least, and at least as many as there are


def load_thumbnails(
    files: Mapping[str, Path],
    cache: Path,
    read: Callable[[Path], np.ndarray] | None = None,
    workers: int = 1,
) -> np.ndarray:
    """Thumbnails of images (name -> file), made once and cached while their files stay the same.

    Args:
        cache: file to keep them in (`.npz`), see `cache_places`; without place nothing is kept.
        read: makes the thumbnail of a file; None: `read_thumbnail`.
        workers: processes that read, where there is much to read; `read` has to be picklable then.

    Returns:
        float16 (N, cells) as `make_thumbnail` gives them.

    Raises:
        CaseError: an image cannot be read.
    """
    known = _read_cache(cache)
    stamps = {each: stamp_file(file) for each, file in files.items()}
    missing = [each for each in files if known.get(each, (None,))[0] != stamps[each]]
    while missing:
        size = max(SAVE_EVERY, len(known))  # each time all of them are written
        part, missing = missing[:size], missing[size:]
        processes = workers if len(part) >= MANY else 1
        made = for_each(
            read or read_thumbnail, [files[each] for each in part], processes, "thumbnails"
        )
        known |= {each: (stamps[each], image) for each, image in zip(part, made, strict=True)}
        _write_cache(cache, known)
    return stack_thumbnails([known[each][1] for each in files])


def load_cached(cache: Path, names: Sequence[str]) -> np.ndarray | None:
    """Thumbnails that were made before, files at hand or not; None where one was not."""
    known = _read_cache(cache)
    if any(name not in known for name in names):
        return None
    return stack_thumbnails([known[name][1] for name in names])


def stack_thumbnails(made: Sequence[np.ndarray]) -> np.ndarray:
    """float16 (N, cells), of no thumbnail as well."""
    return np.stack(made) if made else np.zeros((0, int(np.prod(CELLS))), np.float16)


def make_thumbnail(image: Any) -> np.ndarray:
    """What is left of an image when intensity scale, bias field and resolution are taken away.

    Each channel is averaged over 8 x 24 x 24 cells, its smooth part subtracted, the rest ranked;
    channels are then averaged, so their order is of no matter, and ranked again.

    Args:
        image: array-like (C, Z, Y, X); it is read slab by slab.

    Returns:
        float16 (cells,) with mean 0 and norm 1, so that a product of two is Spearman's correlation;
        all 0 for a constant image.
    """
    ranked = [_rank(_remove_smooth(channel)) for channel in _average_cells(image)]
    return _rank(np.mean(ranked, 0)).reshape(-1).astype(np.float16)


def read_thumbnail(file: Path) -> np.ndarray:
    """Thumbnail of a preprocessed image; CaseError where it cannot be read."""
    try:
        return make_thumbnail(open_image(file))
    except CaseError:
        raise
    except Exception as error:
        raise CaseError(f"{file.name}: {type(error).__name__}: {error}") from error


def _average_cells(image: Any) -> np.ndarray:
    """(C, *CELLS): means over cells, of which each voxel belongs to one or, in shares, to two."""
    channels, depth, *plane = image.shape
    along_z = _share_voxels(depth, CELLS[0])
    in_plane = [
        _share_voxels(length, cells) for length, cells in zip(plane, CELLS[1:], strict=True)
    ]
    means = np.empty((channels, *CELLS))
    for cell, shares in enumerate(along_z):
        slices = np.flatnonzero(shares)
        first, last = int(slices[0]), int(slices[-1]) + 1
        slab = np.nan_to_num(np.asarray(image[:, first:last], np.float32))
        flat = np.einsum("z,czyx->cyx", shares[first:last], slab)
        means[:, cell] = np.einsum("ay,cyx,bx->cab", in_plane[0], flat, in_plane[1], optimize=True)
    return means


def _share_voxels(length: int, cells: int) -> np.ndarray:
    """(cells, length): which share of a cell each voxel is."""
    edges = np.linspace(0, length, cells + 1)
    voxel = np.arange(length)
    covered = np.minimum(edges[1:, None], voxel + 1) - np.maximum(edges[:-1, None], voxel)
    covered = np.clip(covered, 0, None)
    return covered / covered.sum(1, keepdims=True)


def _remove_smooth(channel: np.ndarray) -> np.ndarray:
    rest: np.ndarray = channel - ndimage.gaussian_filter(channel, SMOOTH, mode="nearest")
    largest = np.abs(channel).max()
    return np.where(np.abs(rest) > 1e-6 * largest, rest, 0)  # rounding has no rank


def _rank(values: np.ndarray) -> np.ndarray:
    ranks: np.ndarray = stats.rankdata(values, axis=None).reshape(values.shape)
    ranks = ranks - ranks.mean()
    norm = np.linalg.norm(ranks)
    return ranks / norm if norm else ranks


def _read_cache(cache: Path) -> dict[str, tuple[list[int], np.ndarray]]:
    found = map(_read_file, reversed(cache_places(cache)))
    return {name: entry for known in found for name, entry in known.items()}


def _read_file(cache: Path) -> dict[str, tuple[list[int], np.ndarray]]:
    try:
        with np.load(cache, allow_pickle=False) as archive:
            if not np.array_equal(archive["recipe"], RECIPE):
                return {}
            names, stamps, images = (archive[key] for key in ("names", "stamps", "images"))
    except DAMAGED:
        return {}
    return {
        str(name): (stamp.tolist(), image)
        for name, stamp, image in zip(names, stamps, images, strict=True)
    }


def _write_cache(cache: Path, known: dict[str, tuple[list[int], np.ndarray]]) -> None:
    with suppress(OSError), atomic_path(cache_places(cache)[0]) as part:
        np.savez(
            part,
            recipe=RECIPE,
            names=np.array(list(known)),
            stamps=np.array([stamp for stamp, _ in known.values()], np.int64),
            images=np.stack([image for _, image in known.values()]),
        )
