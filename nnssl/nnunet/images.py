"""Preprocessed images of nnU-Net: the file of a case, opened for reading in parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SEGMENTATION = "_seg"  # ends the names of nnU-Net's files of labels
ENDINGS = (".b2nd", ".npy", ".npz")  # blosc2, or NumPy of older versions
IDENTITY = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]


class CaseError(RuntimeError):
    """A case cannot be read; the message names case, file and cause."""


def image_file(folder: Path, identifier: str) -> Path:
    """File that holds the preprocessed image of a case."""
    for ending in ENDINGS:
        file = folder / f"{identifier}{ending}"
        if file.is_file():
            return file
    raise CaseError(
        f"case {identifier}: no preprocessed image in {folder}. "
        "Run nnUNetv2_preprocess for this plans identifier and configuration."
    )


def list_images(folder: Path) -> set[str]:
    """Identifiers of all preprocessed images of a folder, found in one look."""
    return {file.stem for file in folder.iterdir() if file.suffix in ENDINGS}


def list_cases(folder: Path) -> list[str]:
    """The cases of nnU-Net's folder of preprocessed cases, sorted."""
    return sorted(name for name in list_images(folder) if not name.endswith(SEGMENTATION))


def check_finite(voxels: np.ndarray, case: str) -> np.ndarray:
    """The voxels of a case, refused (`CaseError`) where one is not finite."""
    if not np.isfinite(voxels).all():
        count = int((~np.isfinite(voxels)).sum())
        raise CaseError(
            f"case {case}: {count} preprocessed voxels are not finite. Mend its image (convert it "
            "with --nan 0) and preprocess it again, or take the case out of the fold"
        )
    return voxels


def open_image(file: Path) -> Any:
    """Array-like (C, Z, Y, X) that decompresses only what is indexed."""
    try:
        if file.suffix == ".b2nd":
            import blosc2

            return blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1})
        if file.suffix == ".npy":
            return np.load(file, mmap_mode="r", allow_pickle=False)
        with np.load(file, allow_pickle=False) as archive:
            return archive["data"]
    except Exception as error:
        raise CaseError(f"{file.name}: {type(error).__name__}: {error}") from error


def read_direction(properties: Mapping[str, Any]) -> list[float]:
    """Direction matrix from what nnU-Net's readers store; identity where they store none."""
    if "sitk_stuff" in properties:
        direction = np.asarray(properties["sitk_stuff"]["direction"], float)
        if direction.size == 9:
            return [float(x) for x in direction.ravel()]
    stored = properties.get("nibabel_stuff", {})
    affine = stored.get("reoriented_affine", stored.get("original_affine"))
    if affine is None:
        return list(IDENTITY)
    columns = np.asarray(affine, float)[:3, :3]
    return [float(x) for x in (columns / np.linalg.norm(columns, axis=0)).ravel()]
