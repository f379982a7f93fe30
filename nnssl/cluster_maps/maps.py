"""Cluster maps of a configuration: fitted on training cases, assigned to all, kept on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from scipy import ndimage

from nnssl.cluster_maps.features import EncoderFeatures, HandcraftedFeatures, TransformerFeatures
from nnssl.cluster_maps.makers import Image
from nnssl.cluster_maps.recipe import (
    MANIFEST,
    ClusterRecipe,
    is_same,
    make_manifest,
    read_manifest,
)
from nnssl.common.files import atomic_path, write_json
from nnssl.common.parallel import for_each
from nnssl.common.tissue import find_tissue
from nnssl.nnunet.images import image_file, open_image

PASSES = 5  # of k-means over the sampled voxels
CHUNK = 8192  # voxels per step of k-means
HIGHEST_SCORE = 3.0  # standard deviations at which features are cut off


@dataclass(frozen=True)
class MapJob:
    """Where maps come from and go to; can be sent to another process."""

    preprocessed: Path  # nnU-Net's folder of the configuration
    folder: Path  # of the maps of the fold
    recipe: ClusterRecipe
    spacing: tuple[float, ...]  # millimetres per voxel on the image's own axes (2 or 3)
    patch: tuple[int, ...]  # planned patch size, as many axes


def make_maps(
    job: MapJob,
    plans: Mapping[str, Any],
    configuration: Mapping[str, Any],
    training: Sequence[str],
    images: Sequence[Image],
    workers: int,
    overwrite: bool = False,
) -> list[float]:
    """Make what is missing; all of it, where recipe, plans, cases or weights have changed.

    Maps that are there stay until others are whole, and without `overwrite` for good (ValueError).
    A folder of something else is left alone.

    Args:
        training: identifiers that k-means may see.
        images: cases of the fold and images without labels; all get maps from the same centres.

    Returns:
        Share of each cluster among all voxels that have one.
    """
    wanted = make_manifest(job.recipe, plans, configuration, job.preprocessed, training)
    new = replace(job, folder=job.folder.with_name(f".{job.folder.name}_new"))
    old = job.folder.with_name(f".{job.folder.name}_old")
    shutil.rmtree(old, ignore_errors=True)  # of a run that was killed while it replaced these
    before, begun = read_manifest(job.folder), is_same(read_manifest(new.folder), wanted)
    complete = partial(_complete, wanted=wanted, training=training, images=images, workers=workers)
    if before and not is_same(before, wanted):
        if not overwrite:
            recipe = {k: v for k, v in before["recipe"].items() if v != wanted["recipe"].get(k)}
            raise ValueError(
                f"{job.folder} holds maps made {f'with {recipe}' if recipe else 'from other data'}"
                "; give another --name, or --overwrite to replace them when the new ones are whole"
            )
        if not begun:
            shutil.rmtree(new.folder, ignore_errors=True)
            write_json(new.folder / MANIFEST, wanted)
        shares = complete(new)
        job.folder.rename(old)
        new.folder.rename(job.folder)
        shutil.rmtree(old)
        return shares
    if not before and job.folder.exists() and any(job.folder.iterdir()):
        raise ValueError(f"{job.folder} holds something else than cluster maps; nothing is changed")
    if not before and begun:
        new.folder.rename(job.folder)  # of a run that was killed while it replaced others
    elif not before:
        write_json(job.folder / MANIFEST, wanted)
    return complete(job)


def _complete(
    job: MapJob,
    wanted: Mapping[str, Any],
    training: Sequence[str],
    images: Sequence[Image],
    workers: int,
) -> list[float]:
    """Make what is missing in the folder of a job; returns the share of each cluster."""
    if not _centres_file(job.folder).is_file():
        _fit(job, training, workers)
    missing = [image for image in images if not image.is_mapped(job.folder)]
    for_each(partial(_assign, job), missing, workers, "Cluster maps")
    counts = np.sum([_count(i.map(job.folder), job.recipe.clusters) for i in images], axis=0)
    shares: list[float] = (counts / max(1, counts.sum())).tolist()
    write_json(job.folder / MANIFEST, {**wanted, "shares": shares})
    return shares


def find_body(image: np.ndarray) -> np.ndarray:
    """Voxels inside the outline of tissue: above Otsu's threshold, small gaps and holes filled.

    Args:
        image: (Z, Y, X), first channel.
    """
    tissue = find_tissue(image)
    filled = [
        ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(s, 3), iterations=3))[3:-3, 3:-3]
        for s in tissue
    ]
    return np.stack(filled) | tissue


def _fit(job: MapJob, training: Sequence[str], workers: int) -> None:
    """Centres of the clusters, from voxels of every training case."""
    (job.folder / "samples").mkdir(exist_ok=True)
    each = max(1, job.recipe.samples // len(training))
    for_each(partial(_sample, job, each), list(training), workers, "Features of training cases")
    files = [job.folder / "samples" / f"{case}.npy" for case in sorted(training)]
    pool = np.concatenate([np.load(file, allow_pickle=False) for file in files])
    mean, scale = pool.mean(0), pool.std(0).clip(1e-6)
    points = _scale(pool, mean, scale, _load_source(job).weights(pool.shape[1]))
    centres = k_means(points, job.recipe.clusters, job.recipe.seed)
    with atomic_path(_centres_file(job.folder), sole_writer=True) as part:
        np.savez(part, centres=centres, mean=mean, scale=scale)
    shutil.rmtree(job.folder / "samples")


def k_means(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Centres (K, F) of mini-batch k-means over shuffled points, ordered by the first feature."""
    from sklearn.cluster import MiniBatchKMeans

    if len(points) < clusters:
        raise ValueError(f"clusters: found {clusters} for {len(points)} voxels, allowed: fewer")
    model = MiniBatchKMeans(clusters, random_state=seed, init="k-means++")
    random = np.random.default_rng(seed)
    for _ in range(PASSES):
        order = random.permutation(len(points))
        for part in np.array_split(order, max(1, len(points) // CHUNK)):
            model.partial_fit(points[part])
    centres = model.cluster_centers_
    return centres[np.argsort(centres[:, 0])]


def _sample(job: MapJob, count: int, case: str) -> None:
    """Features of `count` random voxels of a case, kept until all cases are there."""
    file = job.folder / "samples" / f"{case}.npy"
    if file.is_file():
        return
    random = np.random.default_rng([job.recipe.seed, crc32(case.encode())])
    image, allowed = _read(job, Image(case))
    places = np.flatnonzero(allowed)
    chosen = np.zeros(allowed.shape, bool)
    drawn = random.choice(places, min(count, len(places)), replace=False)
    chosen.reshape(-1)[drawn] = True
    parts = [f[:, chosen[w]].T for w, f in _load_source(job).windows(image) if chosen[w].any()]
    with atomic_path(file, sole_writer=True) as part:
        np.save(part, np.concatenate(parts).astype(np.float32))


def _assign(job: MapJob, image: Image) -> None:
    """Nearest centre of every voxel of an image, written as a dense target."""
    voxels, allowed = _read(job, image)
    with np.load(_centres_file(job.folder), allow_pickle=False) as fitted:
        centres, mean, scale = (fitted[key] for key in ("centres", "mean", "scale"))
    weights = _load_source(job).weights(len(mean))
    clusters = np.full(allowed.shape, -1, np.int16)
    for window, features in _load_source(job).windows(voxels):
        inside = allowed[window]
        points = _scale(features[:, inside].T, mean, scale, weights)
        part = np.full(inside.shape, -1, np.int16)
        part[inside] = find_nearest(points, centres)
        clusters[window] = part
    save_map(clusters, image.map(job.folder))


def find_nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Number of the nearest of the centres (K, F), (N,), of points (N, F)."""
    nearest: np.ndarray = (points @ centres.T - 0.5 * (centres**2).sum(1)).argmax(1)
    return nearest


def _scale(
    points: np.ndarray, mean: np.ndarray, scale: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Standardised features (N, F), weighted; cut off, so that no outliers get clusters alone."""
    standard = ((points - mean) / scale).clip(-HIGHEST_SCORE, HIGHEST_SCORE)
    return np.asarray(standard * weights, np.float32)


def _read(job: MapJob, image: Image) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (C, Z, Y, X), and where clusters are wanted, (Z, Y, X)."""
    file = image_file(image.folder or job.preprocessed, image.identifier)
    voxels = np.asarray(open_image(file)[:], np.float32)
    keep = job.recipe.keep_air
    return voxels, np.ones(voxels.shape[1:], bool) if keep else find_body(voxels[0])


def save_map(clusters: np.ndarray, file: Path) -> None:
    """(Z, Y, X) int16 as compressed (1, Z, Y, X), slice by slice; whole or not at all."""
    import blosc2

    chunks = (1, 1, *clusters.shape[1:])
    cparams = {"codec": blosc2.Codec.ZSTD, "clevel": 5, "nthreads": 1}
    with atomic_path(file, sole_writer=True) as part:
        part.unlink(missing_ok=True)  # blosc2 does not overwrite what a killed run has left
        blosc2.asarray(clusters[None], urlpath=str(part), chunks=chunks, cparams=cparams)


def _count(file: Path, clusters: int) -> np.ndarray:
    found = np.asarray(open_image(file, "iu")[:]).reshape(-1).astype(np.int64)
    return np.bincount(found + 1, minlength=clusters + 1)[1:]


@lru_cache(1)
def _load_source(job: MapJob) -> Any:
    """The features, once per process (a network is loaded once)."""
    recipe = job.recipe
    if recipe.source == "handcrafted":
        return HandcraftedFeatures(recipe.scales, job.spacing, recipe.position)
    if recipe.source == "self":
        return EncoderFeatures(str(recipe.checkpoint), recipe.stage, recipe.upsampling, job.patch)
    return TransformerFeatures(recipe.model, recipe.checkpoint, recipe.size, recipe.upsampling)


def _centres_file(folder: Path) -> Path:
    return folder / "centres.npz"
