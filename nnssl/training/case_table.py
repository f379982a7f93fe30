"""Which cases a fold trains on, with shape, patient, origin and orientation of each."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnssl.datasets.cases import read_cases
from nnssl.datasets.files import write_json
from nnssl.training.case_store import Case, CaseError, image_file, open_image

PositionAxis = Literal["head_feet", "slice"] | int
IDENTITY = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]


def case_table(
    folder: Path,
    own_folder: Path,
    identifiers: Iterable[str],
    transpose: Sequence[int],
    position_axis: PositionAxis,
) -> list[Case]:
    """Cases in sorted order of their identifiers.

    Args:
        folder: nnU-Net's preprocessed folder of the configuration (`data_identifier`).
        own_folder: where nnssl keeps its files for it; the table is cached there.
        identifiers: cases of the fold.
        transpose: `transpose_forward` of the plans.
        position_axis: knob of the sampling.
    """
    identifiers = sorted(identifiers)
    geometry = _geometry(folder, own_folder / "geometry.json", identifiers)
    records = read_cases(folder.parent, identifiers)
    patients = _numbers(records[i].patient for i in identifiers)
    datasets = _numbers(records[i].dataset for i in identifiers)
    table = []
    for i in identifiers:
        axis, sign = anatomical_axis(geometry[i]["direction"], transpose, position_axis)
        shape = tuple(int(n) for n in geometry[i]["shape"])
        record = records[i]
        table.append(
            Case(i, patients[record.patient], datasets[record.dataset], shape, axis, sign)  # type: ignore[arg-type]
        )
    return table


def describe_axes(table: Sequence[Case]) -> str:
    """One line for the log: which array axis and sign the position follows, in how many cases."""
    counts = Counter((case.axis, case.sign) for case in table)
    return ", ".join(
        f"array axis {axis} ({'towards' if sign > 0 else 'away from'} the head): {n} cases"
        for (axis, sign), n in sorted(counts.items())
    )


def anatomical_axis(
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


def _numbers(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(sorted(set(names)))}


def _geometry(folder: Path, cache: Path, identifiers: Sequence[str]) -> Mapping[str, Any]:
    """Shape and direction per case, read once and kept while the files stay the same."""
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    changed = False
    for identifier in identifiers:
        file = image_file(folder, identifier)
        status = file.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        if known.get(identifier, {}).get("stamp") != stamp:
            known[identifier] = {"stamp": stamp, **_read_geometry(folder, file, identifier)}
            changed = True
    if changed and os.access(folder.parent, os.W_OK):
        write_json(cache, known)
    return known


def _read_geometry(folder: Path, file: Path, identifier: str) -> dict[str, Any]:
    try:
        shape = [int(n) for n in open_image(file).shape[1:]]
        with (folder / f"{identifier}.pkl").open("rb") as stream:
            properties = pickle.load(stream)
    except Exception as error:
        raise CaseError(f"case {identifier}, file {file}: cannot be read ({error})") from error
    return {"shape": shape, "direction": _direction(properties)}


def _direction(properties: Mapping[str, Any]) -> list[float]:
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
