"""Images without labels beside a dataset: one record per image, and what they were made by."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from nnssl.common.files import hash_json, read_json, write_json
from nnssl.nnunet.images import CaseError, image_file, list_images

UNLABELLED = "unlabelled"  # below nnssl's own folder of a configuration
MANIFEST = "manifest.json"
RECORDS = "records"
INDEX = "records.json"  # all records in one file, which is quicker to read
VOXELS = (  # keys of a configuration that decide what the preprocessed voxels are
    "data_identifier",
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
)
OF_PLANS = (
    "image_reader_writer",
    "transpose_forward",
    "foreground_intensity_properties_per_channel",
)


@dataclass(frozen=True)
class SourceFile:
    """A file that an image was made of: path below the source folder, size, time, SHA-256."""

    path: str
    size: int
    mtime_ns: int
    sha256: str = ""

    @property
    def stamp(self) -> tuple[str, int, int]:
        """What says, without reading it, that a file has not changed."""
        return self.path, self.size, self.mtime_ns


@dataclass(frozen=True)
class UnlabelledImage:
    """One preprocessed image without label."""

    identifier: str  # name of its file
    patient: str  # key of the patient, the same as in the dataset where the patient is known there
    place: str  # what it was made of, below the source folder
    files: tuple[SourceFile, ...]
    frame: int | None  # number of the frame, from 1; None: not one of several
    frames: int  # number of frames of the source
    channels: int
    shape: tuple[int, int, int]  # of the preprocessed volume, array order
    spacing: tuple[float, ...]  # of the source in millimetres, as nnU-Net's reader gives it
    direction: tuple[float, ...]  # 3 x 3 matrix, row-major, as nnU-Net's reader gives it
    orientation: str  # where the axes x, y, z of the source grow, for instance `LPS`
    voxels: str  # hash of what the preprocessing depends on, see `hash_preprocessing`
    thumbnail: str  # see `make_thumbnail`; float16, base64

    @property
    def content(self) -> str:
        """Hash of what the voxels come from; a copy of the same file elsewhere has the same."""
        hashes = [file.sha256 for file in self.files]
        return hash_json([hashes, self.frame, self.voxels])

    def decode_thumbnail(self) -> np.ndarray:
        """The thumbnail, (cells,)."""
        return np.frombuffer(base64.b64decode(self.thumbnail), np.float16)


def encode_thumbnail(thumbnail: np.ndarray) -> str:
    """A thumbnail as a record holds it."""
    return base64.b64encode(thumbnail.astype(np.float16).tobytes()).decode()


def hash_preprocessing(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> str:
    """Hash of what decides the preprocessed voxels; patch, batch and network do not matter."""
    chosen = {key: configuration.get(key) for key in VOXELS}
    return hash_json({**chosen, **{key: plans.get(key) for key in OF_PLANS}})


def find_collections(own: Path) -> dict[str, Path]:
    """Name -> folder of the collections of images without labels, sorted by name."""
    found = sorted((own / UNLABELLED).glob(f"*/{MANIFEST}"))
    return {file.parent.name: file.parent for file in found}


class _Manifest(TypedDict):
    source: str
    voxels: str


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a collection was made by; empty where there is none."""
    file = folder / MANIFEST
    return dict(read_json(file, _Manifest)) if file.is_file() else {}


def write_image_record(folder: Path, image: UnlabelledImage) -> None:
    """Write the record of an image; an image counts from then on."""
    write_json(record_file(folder, image.identifier), asdict(image))


def record_file(folder: Path, identifier: str) -> Path:
    """Where the record of an image lies."""
    return folder / RECORDS / f"{identifier}.json"


def read_records(folder: Path) -> list[UnlabelledImage]:
    """Records of a collection, sorted by identifier; ValueError where one is damaged.

    Each record is a file of its own, so that several processes can write at once; an index file
    keeps what was read of them while they stay the same.
    """
    try:
        with os.scandir(folder / RECORDS) as entries:
            found = {e.name: e.stat() for e in entries if e.name.endswith(".json")}
    except FileNotFoundError:
        return []
    known, new = _read_index(folder / INDEX), {}
    for name, status in sorted(found.items()):
        stamp, (before, entry) = [status.st_size, status.st_mtime_ns], known.get(name, (None, None))
        new[name] = [stamp, entry if before == stamp else read_json(folder / RECORDS / name)]
    records = [_make_record(folder / RECORDS / name, entry) for name, (_, entry) in new.items()]
    if new != known:
        with suppress(OSError):  # the folder may be read-only
            write_json(folder / INDEX, new)
    return records


def read_images(folder: Path) -> list[UnlabelledImage]:
    """Records of a collection whose image is there."""
    there = list_images(folder)
    return [record for record in read_records(folder) if record.identifier in there]


def is_there(folder: Path, image: UnlabelledImage) -> bool:
    """Whether an image of a collection is there, beside its record."""
    try:
        return image_file(folder, image.identifier).is_file()
    except CaseError:
        return False


def _read_index(file: Path) -> dict[str, list[Any]]:
    """Name of a record's file -> its size and time, and its content; empty where unreadable."""
    try:
        return {name: [list(stamp), entry] for name, (stamp, entry) in read_json(file).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _make_record(file: Path, entry: Any) -> UnlabelledImage:
    try:
        known = {field.name: entry[field.name] for field in fields(UnlabelledImage)}
        known["files"] = tuple(SourceFile(**each) for each in known["files"])
        for name in ("shape", "spacing", "direction"):
            known[name] = tuple(known[name])
        return UnlabelledImage(**known)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is no record of an image ({error}); delete it and run "
            "nnssl_preprocess_unlabelled again"
        ) from error
