"""Copies: near-duplicate images, found from their thumbnails, under whatever name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnssl.data.thumbnails import CELLS, load_thumbnails
from nnssl.nnunet.images import CaseError, image_file
from nnssl.nnunet.paths import own_folder

THRESHOLD = 0.8  # measured: docs/statistics.md
CHUNK = 256  # images compared at once
FLIPS = tuple(tuple(a for a in range(3) if bits >> a & 1) for bits in range(8))
CACHE = "thumbnails.npz"  # among nnSSL's own files of a configuration


class Copy(NamedTuple):
    """Two images that are nearly the same: positions in both lists, and their correlation."""

    query: int
    candidate: int
    correlation: float


def load_case_thumbnails(folder: Path | None, cases: Sequence[str]) -> np.ndarray:
    """Thumbnails (N, cells) of preprocessed cases in a folder of nnU-Net, made once.

    Raises:
        CaseError: the folder is not known, or an image is missing or cannot be read.
    """
    if folder is None:
        raise CaseError("it is not known how the images were prepared")
    files = {case: image_file(folder, case) for case in cases}
    return load_thumbnails(files, own_folder(folder) / CACHE)


def find_copies(queries: np.ndarray, candidates: np.ndarray, flips: bool) -> list[Copy]:
    """All pairs whose correlation reaches `THRESHOLD`.

    Args:
        flips: compare with the queries mirrored along every axis as well, for images that came by
            another reader or format.
    """
    best: dict[tuple[int, int], float] = {}
    turned = candidates.astype(np.float32).T
    for axes in FLIPS if flips else FLIPS[:1]:
        mirrored = np.flip(queries.reshape(-1, *CELLS), tuple(a + 1 for a in axes))
        for start in range(0, len(queries), CHUNK):
            part = mirrored[start : start + CHUNK].reshape(-1, turned.shape[0]).astype(np.float32)
            correlation = part @ turned
            for q, c in np.argwhere(correlation >= THRESHOLD):
                pair, value = (start + int(q), int(c)), float(correlation[q, c])
                best[pair] = max(value, best.get(pair, value))
    return [Copy(*pair, value) for pair, value in sorted(best.items())]
