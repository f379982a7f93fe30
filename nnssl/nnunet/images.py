"""Preprocessed images of nnU-Net: the file of a case, opened for reading in parts."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.common.content import check_size

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


def open_image(file: Path, kinds: str = "f") -> Any:
    """Array-like (C, Z, Y, X) that decompresses only what is indexed.

    Args:
        file: of an image, or of something else on its voxels.
        kinds: of NumPy's numbers that are allowed: `f` for images, `iu` for labels and maps.

    Raises:
        CaseError: it cannot be opened, or its header tells that it is no image of nnU-Net's. Voxels
            that were damaged are not noticed: nnU-Net's files hold no checksum.
    """
    try:
        image = _open(file)
        shape, kind = tuple(image.shape), np.dtype(image.dtype)
    except Exception as error:
        raise CaseError(f"{file}: {type(error).__name__}: {error}") from error
    if len(shape) != 4 or 0 in shape or kind.kind not in kinds:
        raise CaseError(
            f"{file}: found an array of shape {shape} and type {kind}; allowed are four axes "
            f"(channels and three of the volume), none of length 0, and NumPy's kinds {kinds!r}"
        )
    return image


def _open(file: Path) -> Any:
    if file.suffix == ".b2nd":
        import blosc2

        return blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1})
    if file.suffix == ".npy":
        return np.load(file, mmap_mode="r", allow_pickle=False)
    with np.load(file, allow_pickle=False) as archive:
        return archive["data"]


class _PlainUnpickler(pickle.Unpickler):
    """Makes NumPy arrays, numbers, texts and containers only; every other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        place = module.replace("numpy._core", "numpy.core"), name
        if place not in PLAIN:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which could run code")
        return PLAIN[place]


def _make_empty_array(*_: Any) -> np.ndarray:
    """What a pickled array is before its content is set, whose size is then that of the file."""
    return np.empty(0)


PLAIN = {
    ("numpy.core.multiarray", "_reconstruct"): _make_empty_array,
    ("numpy.core.multiarray", "scalar"): np.float64(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0],
    ("numpy", "ndarray"): _make_empty_array,
    ("numpy", "dtype"): np.dtype,
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): str.encode,
}


def read_properties(file: Path) -> dict[str, Any]:
    """What nnU-Net keeps of a case beside its image, read without running any code.

    nnU-Net itself reads the file with Python's pickle, which runs what it says.

    Raises:
        CaseError: it is damaged, or holds more than arrays, numbers, texts and containers.
    """
    try:
        with file.open("rb") as stream:
            properties = _PlainUnpickler(stream).load()
        check_size(properties, "it")
        if not isinstance(properties, dict):
            raise TypeError(f"it holds a {type(properties).__name__}, allowed is a mapping")
    except Exception as error:  # damaged and hostile files fail in many ways
        raise CaseError(f"{file} cannot be read: {error}") from error
    return properties


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
