"""Copies: near-duplicate images, found from their thumbnails, under whatever name."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnssl.data.thumbnails import CELLS, load_thumbnails
from nnssl.nnunet.images import CaseError, image_file
from nnssl.nnunet.paths import own_folder

THRESHOLD = 0.8  # measured: docs/leakage.md
ALIKE = 0.6  # correlation from which an image may be a cropped copy; different people are below
MARGIN = 0.4  # what of the way from such a likeness of different people to 1 a copy goes at least
RANK = 3  # of the most alike images: two may be copies of one person under another name
CHUNK = 256  # images compared at once
FLIPS = tuple(tuple(a for a in range(3) if bits >> a & 1) for bits in range(8))
CACHE = "thumbnails.npz"  # among nnSSL's own files of a configuration
SIGNATURE = 1024  # numbers of a signature
SCALE = 127 * 8  # a part of a signature is about 1 / 32, and at most 1 / 8


class Copy(NamedTuple):
    """Two images that are nearly the same: positions in both lists, and their correlation."""

    query: int
    candidate: int
    correlation: float


def load_case_thumbnails(folder: Path | None, cases: Sequence[str], workers: int = 1) -> np.ndarray:
    """Thumbnails (N, cells) of preprocessed cases in a folder of nnU-Net, made once.

    Raises:
        CaseError: the folder is not known, or an image is missing or cannot be read.
    """
    if folder is None:
        raise CaseError("it is not known how the images were prepared")
    files = {case: image_file(folder, case) for case in cases}
    return load_thumbnails(files, own_folder(folder) / CACHE, workers=workers)


def make_signatures(thumbnails: np.ndarray) -> np.ndarray:
    """What a checkpoint keeps of images, int8 (N, 1024).

    The thumbnail's products with 1024 fixed random vectors of signs: the cosine of two signatures
    is the correlation of two thumbnails with a standard deviation of 0.01 at 0.8 and 0.03 at 0, and
    the image cannot be drawn from it.
    """
    projected = thumbnails.astype(np.float32) @ _draw_signs()
    lengths = np.linalg.norm(projected, axis=1, keepdims=True)
    unit = projected / np.where(lengths == 0, 1, lengths)
    return np.clip(np.round(unit * SCALE), -127, 127).astype(np.int8)


def find_copies(
    queries: np.ndarray, candidates: np.ndarray, flips: bool, threshold: float = THRESHOLD
) -> list[Copy]:
    """All pairs whose correlation reaches the threshold.

    Args:
        queries: thumbnails (N, cells).
        candidates: thumbnails, or signatures.
        flips: compare with the queries mirrored along every axis, and with the two axes of the
            slices exchanged, as well, for images that came by another reader or format.
        threshold: of the correlation.
    """
    best: dict[tuple[int, int], float] = {}
    signed = candidates.shape[1] == SIGNATURE
    turned = candidates.astype(np.float32).T / (SCALE if signed else 1)
    cells = queries.reshape(-1, *CELLS)
    for axes in FLIPS if flips else FLIPS[:1]:
        for order in ((0, 1, 2, 3), (0, 1, 3, 2))[: 1 + flips]:
            mirrored = np.flip(cells, tuple(a + 1 for a in axes)).transpose(order)
            for start in range(0, len(queries), CHUNK):
                part = mirrored[start : start + CHUNK].reshape(-1, int(np.prod(CELLS)))
                ready = make_signatures(part) / np.float32(SCALE) if signed else part
                correlation = ready.astype(np.float32) @ turned
                for q, c in np.argwhere(correlation >= threshold):
                    pair, value = (start + int(q), int(c)), float(correlation[q, c])
                    best[pair] = max(value, best.get(pair, value))
    return [Copy(*pair, value) for pair, value in sorted(best.items())]


def measure_likeness(thumbnails: np.ndarray, patients: Sequence[Hashable]) -> np.ndarray:
    """How much different people of one collection look alike, as each of its images sees it.

    The third highest correlation (N,) with the image of another patient, 0 where there are fewer.
    Brains that were registered to one template and stripped of their skulls reach 0.9.
    """
    last = {patient: k for k, patient in enumerate(patients)}
    numbers = np.array([last[each] for each in patients])
    found = np.zeros(len(thumbnails), np.float32)
    flat = thumbnails.astype(np.float32)
    for start in range(0, len(flat), CHUNK):
        part = slice(start, start + CHUNK)
        others = np.where(numbers[part, None] == numbers, 0, flat[part] @ flat.T)
        if len(flat) >= RANK:
            found[part] = np.partition(others, -RANK, axis=1)[:, -RANK]
    return np.clip(found, 0, 1)


def is_beyond_likeness(correlation: float, likeness: float) -> bool:
    """Whether a pair is more alike than different people are, where these are very alike."""
    return bool(likeness < ALIKE or correlation >= likeness + MARGIN * (1 - likeness))


@cache
def _draw_signs() -> np.ndarray:
    """(cells, 1024); NumPy promises that this generator never draws anything else."""
    bits = np.random.RandomState(0).randint(0, 2, (int(np.prod(CELLS)), SIGNATURE))
    return (2 * bits - 1).astype(np.float32)
