"""The cases of a fold, with shape, patient, origin and orientation of each, and where they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from annotated_types import Len
from tqdm import tqdm
from typing_extensions import TypedDict

from nnssl.common.checks import Count
from nnssl.common.files import read_json, stamp_file, write_json
from nnssl.data.unlabelled.records import UNLABELLED
from nnssl.nnunet.cases import read_cases
from nnssl.nnunet.images import CaseError, image_file, open_image, read_direction, read_properties
from nnssl.nnunet.paths import cache_places, own_folder

PositionAxis = Literal["head_feet", "slice", 0, 1, 2]
DELAY = 2.0  # seconds before progress is shown
GEOMETRY_FILE = "geometry.json"  # cache of the shapes and directions of the images
TOWARDS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
_Name = TypeVar("_Name", str, tuple[str, str])
REORIENTING = "NibabelIOWithReorient"


@dataclass(frozen=True)
class Case:
    """One preprocessed case, with what the sampler has to know about it."""

    identifier: str
    patient: int  # number, for drawing distinct patients
    dataset: int  # number of the dataset of origin
    shape: tuple[int, int, int]  # of the volume, array order
    axis: int  # array axis along which position is measured
    sign: int  # +1 if position grows with the index, else -1
    folder: Path | None = None  # of its image; None: that of the configuration


class _Geometry(TypedDict):
    """What is kept of an image: see `stamp_file` and `read_direction`."""

    stamp: list[int]
    shape: Annotated[list[Count], Len(3, 3)]
    direction: Annotated[list[float], Len(9, 9)]


def dense_target_folder(maps: Path, folder: Path | None) -> Path:
    """Where the dense targets of images lie; `folder` of the images: see `Case`."""
    return maps if folder is None else maps / UNLABELLED / folder.name


@dataclass(frozen=True)
class DataFolders:
    """Where a configuration's data lie."""

    preprocessed: Path  # nnU-Net's; nothing of ours is written there
    fold: int | str  # number or `all`; each has dense targets of its own, from its training cases

    @property
    def own(self) -> Path:
        """nnSSL's folder for it, `nnUNet_preprocessed/DatasetXXX/nnssl/<data_identifier>`."""
        return own_folder(self.preprocessed)

    def dense_target(self, name: str) -> Path:
        """Folder of one dense target of this fold, whether it is there or not."""
        places = cache_places(self.own / name / f"fold_{self.fold}")
        return next((place for place in places if place.is_dir()), places[0])

    def find_dense_targets(self, names: Sequence[str]) -> dict[str, Path]:
        """Folders of dense targets; a missing one stops the run."""
        folders = {name: self.dense_target(name) for name in names}
        for name, folder in folders.items():
            if not folder.is_dir():
                raise ValueError(
                    f"dense targets {name!r} of fold {self.fold} are not in {folder}. Cluster "
                    f"maps are made with: nnssl_cluster -f {self.fold} --name {name}"
                )
        return folders


def read_case_table(
    folder: Path,
    identifiers: Iterable[str],
    transpose: Sequence[int],
    position_axis: PositionAxis,
    reader: str = "SimpleITKIO",
) -> list[Case]:
    """Cases in sorted order of their identifiers; what is read of the images is cached.

    Args:
        reader: `image_reader_writer` of the plans; one that reorients makes what the converter has
            recorded of the file's orientation useless for the array.
    """
    identifiers = sorted(identifiers)
    records = read_cases(folder.parent, identifiers)
    turned = reader == REORIENTING
    orientations = {i: None if turned else records[i].orientation for i in identifiers}
    geometry = _read_cached_geometry(folder, orientations)
    patients = _number(records[i].key for i in identifiers)
    datasets = _number(records[i].dataset for i in identifiers)
    table = []
    for i in identifiers:
        axis, sign = find_anatomical_axis(geometry[i]["direction"], transpose, position_axis)
        origin = patients[records[i].key], datasets[records[i].dataset]
        table.append(Case(i, *origin, tuple(geometry[i]["shape"]), axis, sign))
    return table


def describe_axes(table: Sequence[Case]) -> str:
    """One line for the log: which array axis and sign the position follows, in how many cases."""
    counts = Counter((case.axis, case.sign) for case in table)
    return ", ".join(
        f"array axis {axis} ({'towards' if sign > 0 else 'away from'} the head): {n} cases"
        for (axis, sign), n in sorted(counts.items())
    )


def find_anatomical_axis(
    direction: Sequence[float], transpose: Sequence[int], position_axis: PositionAxis
) -> tuple[int, int]:
    """Array axis and sign of the head direction.

    Args:
        direction: 3x3 matrix, row-major; columns are the image axes (x, y, z) in patient
            coordinates whose third component points to the head.
        transpose: nnU-Net's `transpose_forward`, from the reader's (z, y, x) to the array's axes.
        position_axis: `head_feet`, `slice` (array axis 0) or an array axis.
    """
    head = np.asarray(direction, float).reshape(3, 3)[2]
    along = np.array([head[2 - reader_axis] for reader_axis in transpose])
    axis = int(np.abs(along).argmax()) if position_axis == "head_feet" else 0
    if isinstance(position_axis, int):
        axis = position_axis
    return axis, (-1 if along[axis] < 0 else 1)


def _number(names: Iterable[_Name]) -> dict[_Name, int]:
    return {name: number for number, name in enumerate(sorted(set(names)))}


def _read_cached_geometry(
    folder: Path, orientations: Mapping[str, str | None]
) -> Mapping[str, Any]:
    """Shape and direction per case, read once and kept while the files stay the same."""
    places, changed = cache_places(own_folder(folder) / GEOMETRY_FILE), False
    known: dict[str, Any] = {}
    for place in reversed(places):
        with suppress(OSError, ValueError, TypeError):
            known.update(read_json(place, dict[str, _Geometry]))
    for identifier, orientation in tqdm(orientations.items(), "geometry", delay=DELAY):
        file = image_file(folder, identifier)
        stamp = stamp_file(file)
        if known.get(identifier, {}).get("stamp") != stamp:
            known[identifier] = {"stamp": stamp, **_read_geometry(file, identifier, orientation)}
            changed = True
    if changed:
        with suppress(OSError):
            write_json(places[0], known)
    return known


def _read_geometry(file: Path, identifier: str, orientation: str | None) -> dict[str, Any]:
    """Shape from the image's header; direction from our records, else from nnU-Net's properties.

    The properties hold class locations too (megabytes per case, from the labels), so they are not
    opened where the converter has recorded the orientation.
    """
    try:
        shape = [int(n) for n in open_image(file).shape[1:]]
        if orientation is not None:
            return {"shape": shape, "direction": parse_orientation(orientation)}
        direction = read_direction(read_properties(file.with_name(f"{identifier}.pkl")))
    except Exception as error:
        raise CaseError(f"case {identifier}: {error}") from error
    return {"shape": shape, "direction": direction}


def parse_orientation(orientation: str) -> list[float]:
    """3x3 direction matrix, row-major, of three letters such as `LPS`: where x, y and z grow."""
    found = [TOWARDS.get(letter) for letter in orientation]
    if len(found) != 3 or None in found or len({axis for axis, _ in filter(None, found)}) != 3:
        raise ValueError(
            f"orientation: found {orientation!r}, allowed are three letters, one each of L or R, "
            "P or A, S or I"
        )
    matrix = np.zeros((3, 3))
    for column, (row, sign) in enumerate(filter(None, found)):
        matrix[row, column] = sign
    return [float(x) for x in matrix.ravel()]
