"""Which share of a box of a preprocessed image is tissue, found from the image alone."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from nnssl.common.files import DAMAGED, atomic_path, stamp_file
from nnssl.common.tissue import find_tissue
from nnssl.nnunet.images import CaseError, check_finite, image_file, open_image
from nnssl.nnunet.paths import cache_places

CACHE = "occupancy"  # folder of the tables; the name is older than the word
CELL = 8  # voxels per tissue cell and in-plane axis
MOST_KEPT = 64  # tables that one process keeps


class TissueShare:
    """Share of tissue per cell of a volume, found from the image alone and cached per case.

    Tissue is what lies above Otsu's threshold of the first channel. A cell is one slice thick on
    axis 0 and `CELL` voxels wide on the others. The summed-area table answers in constant time
    what share of a box is tissue.
    """

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self._tables: dict[tuple[Path | None, str], np.ndarray] = {}

    def find_share(self, identifier: str, box: np.ndarray, folder: Path | None = None) -> float:
        """Share of tissue in a box (3, 2) of the volume, 0 to 1; outside the volume is air.

        Args:
            box: first voxel and end on each axis.
            folder: of an image that lies elsewhere (see `Case`); its cache lies in there.
        """
        table = self._get_table(identifier, folder)
        limit = np.array(table.shape) - 1
        scaled = box / np.array([1, CELL, CELL])[:, None]
        low = np.clip(np.floor(scaled[:, 0]).astype(int), 0, limit)
        high = np.clip(np.ceil(scaled[:, 1]).astype(int), 0, limit)
        cells = np.prod(np.ceil(scaled[:, 1]) - np.floor(scaled[:, 0]))
        return float(_sum_box(table, low, high) / max(cells, 1))

    def _get_table(self, identifier: str, folder: Path | None) -> np.ndarray:
        key = (folder, identifier)
        if key not in self._tables:
            if len(self._tables) >= MOST_KEPT:
                self._tables.clear()
            cells = self._load(identifier, folder).astype(np.float64)  # float16 ends at 65,504
            table = np.zeros(np.array(cells.shape) + 1)
            table[1:, 1:, 1:] = cells.cumsum(0).cumsum(1).cumsum(2)
            self._tables[key] = table
        return self._tables[key]

    def _load(self, identifier: str, folder: Path | None) -> np.ndarray:
        source = image_file(folder or self.folder, identifier)
        stamp = np.array(stamp_file(source), np.int64)
        cache = self.cache if folder is None else folder / CACHE
        places = cache_places(cache / f"{identifier}.npz")
        for place in places:
            with (
                suppress(*DAMAGED),
                np.load(place, allow_pickle=False) as archive,
            ):
                if np.array_equal(archive["source"], stamp):
                    return np.asarray(archive["cells"])
        cells = measure_cells(check_finite(_read_all(source), identifier))
        with suppress(OSError), atomic_path(places[0]) as part:
            np.savez_compressed(part, cells=cells, source=stamp)
        return cells


def _read_all(file: Path) -> np.ndarray:
    try:
        return np.asarray(open_image(file)[0:1], np.float32)[0]
    except CaseError:
        raise
    except Exception as error:
        raise CaseError(f"{file.name}: {type(error).__name__}: {error}") from error


def measure_cells(image: np.ndarray) -> np.ndarray:
    """Share of voxels above Otsu's threshold in each cell of (1, CELL, CELL) voxels.

    Args:
        image: (Z, Y, X), any intensity scale.

    Returns:
        float16 (Z, ceil(Y / CELL), ceil(X / CELL)); all ones for a constant image.
    """
    tissue = find_tissue(image).astype(np.float32)
    padded = np.pad(tissue, [(0, 0), *((0, -size % CELL) for size in image.shape[1:])])
    z, y, x = padded.shape
    return padded.reshape(z, y // CELL, CELL, x // CELL, CELL).mean((2, 4)).astype(np.float16)


def _sum_box(table: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    total = 0.0
    for corner in np.ndindex(2, 2, 2):
        index = tuple(high[a] if c else low[a] for a, c in enumerate(corner))
        total += (-1) ** (3 - sum(corner)) * float(table[index])
    return total
