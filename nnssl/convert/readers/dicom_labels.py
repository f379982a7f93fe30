"""DICOM SEG and RTSTRUCT as labels: structures by name, on the grid of the series they refer to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from skimage.draw import polygon

from nnssl.convert.readers.dicom import Series, assemble
from nnssl.convert.readers.dicom_objects import (
    STRUCTURE_SET,
    Plane,
    group,
    is_label,
    label_of,
    list_structures,
    read_outlines,
    read_planes,
    require,
)
from nnssl.convert.volumes import ImageAndNotes, Reading

OFF_GRID = 0.05  # largest distance of a segment's voxels from the image's, in voxels
OFF_PLANE = 0.1  # largest distance of a contour from its slice, in slice distances
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
Draw = Callable[[np.ndarray], None]  # draws a structure into a mask (z, y, x)


def holds_label(path: Path) -> bool:
    """Whether a file is a SEG or an RTSTRUCT."""
    tags = ["SOPClassUID"]
    return is_label(require("pydicom").dcmread(path, specific_tags=tags, force=True))


def read_label(paths: Sequence[Path], series: Series, how: Reading) -> ImageAndNotes:
    """Wanted structures of SEG and RTSTRUCT objects, on the grid of the series.

    A voxel belongs to an outlined structure where its centre lies within; contours of one structure
    on one slice cut holes into each other (exclusive or). Where structures of different values
    overlap, ``how.overlap`` decides: ``refuse``, or ``last`` (the largest value).

    Raises:
        ValueError: Another frame of reference, orientation, spacing or place; no wanted structure,
            one that is there twice or fits two names; overlaps that are refused.
    """
    values = how.structures.values()
    kind = np.uint8 if max(values) < 256 else np.uint16
    label = np.zeros((len(series.slices), *series.slices[0].size[::-1]), kind)
    owners: dict[int, str] = {}
    for name, value, draw in _find_wanted(paths, series, how.structures):
        mask = np.zeros(label.shape, bool)
        draw(mask)
        others = np.unique(label[mask & (label > 0) & (label != value)])
        if others.size and how.overlap == "refuse":
            count = int((mask & (label == others[0])).sum())
            raise ValueError(
                f"has {count} voxels in {owners[others[0]]!r} and in {name!r}; "
                "--overlap last gives them to the label that is named last"
            )
        owners[value] = name
        label[mask] = np.maximum(label[mask], kind(value))
    image, notes = assemble(label, series, how.slices, label=True)
    missing = [pattern for pattern, value in how.structures.items() if value not in owners]
    return image, (*notes, *(f"no structure is named {pattern}" for pattern in missing))


def _find_wanted(
    paths: Sequence[Path], series: Series, structures: Mapping[str, int]
) -> list[tuple[str, int, Draw]]:
    """Name, value, and who draws it, of each structure that has a value."""
    found: dict[str, tuple[str, int, Draw]] = {}
    known: list[str] = []
    for path in paths:
        dataset = require("pydicom").dcmread(path, force=True)
        names = list(dict.fromkeys(list_structures(dataset)))
        values = {name: value for name in names if (value := find_value(structures, name))}
        if twice := sorted(found.keys() & values):
            raise ValueError(f"outlines {twice}, as another object does; choose one with --label")
        known += names
        if values:
            outlines = dataset.SOPClassUID == STRUCTURE_SET
            draw = (_outlines if outlines else _segments)(path, dataset, series)
            found |= {name: (name, value, partial(draw, name)) for name, value in values.items()}
    if not found:
        raise ValueError(f"has none of {list(structures)}; its structures are {sorted(known)}")
    return list(found.values())


def find_value(structures: Mapping[str, int], name: str) -> int | None:
    """Value of the one pattern that matches the whole name, in capitals or not.

    Raises:
        ValueError: Patterns of two values match.
    """
    values = {
        value for pattern, value in structures.items() if re.fullmatch(pattern, name, re.IGNORECASE)
    }
    if len(values) > 1:
        raise ValueError(f"has the structure {name!r}, which fits the labels {sorted(values)}")
    return values.pop() if values else None


def _check_frame_of_reference(frame: str, series: Series) -> None:
    image = series.slices[0].frame_of_reference
    if frame != image:
        raise ValueError(
            f"has another frame of reference ({frame}) than its series ({image}), so that nobody "
            "knows where it lies in the image"
        )


def _segments(path: Path, dataset: Any, series: Series) -> Callable[[str, np.ndarray], None]:
    """Draws the segments of a name, which may be several; frames are decoded one by one."""
    _check_frame_of_reference(str(dataset.get("FrameOfReferenceUID", "")), series)
    seg, kind = require("highdicom").seg.segread(path), dataset.SegmentationType
    if kind not in ("BINARY", "LABELMAP"):
        raise ValueError(f"is {kind}; a BINARY or LABELMAP segmentation is needed")
    frames = list(enumerate(seg.PerFrameFunctionalGroupsSequence, 1))
    planes = read_planes(seg)

    def draw(name: str, into: np.ndarray) -> None:
        numbers = [each.SegmentNumber for each in seg.SegmentSequence if label_of(each) == name]
        for (index, frame), plane in zip(frames, planes, strict=True):
            if kind == "LABELMAP":
                mask = np.isin(seg.get_stored_frame(index), numbers)
            elif group(seg, frame, "SegmentIdentification").ReferencedSegmentNumber in numbers:
                mask = seg.get_stored_frame(index) > 0
            else:
                continue
            if mask.any():
                z, y, x = _find_corner(plane, mask.shape, series)
                into[z, y : y + mask.shape[0], x : x + mask.shape[1]] |= mask

    return draw


def _find_corner(plane: Plane, size: tuple[int, ...], series: Series) -> tuple[int, int, int]:
    """Indices (z, y, x) of a frame's first voxel in the series.

    Raises:
        ValueError: Another orientation or spacing, or voxels that are not voxels of the series.
    """
    first = series.slices[0]
    if not np.allclose(plane.axes, first.axes, atol=1e-3):
        found = [np.round(axes, 4).tolist() for axes in (plane.axes, first.axes)]
        raise ValueError(f"has other axes ({found[0]}) than its series ({found[1]})")
    if not np.allclose(plane.spacing, first.spacing, rtol=1e-3):
        raise ValueError(f"has pixels of {plane.spacing} mm, its series of {first.spacing} mm")
    z, off = _find_slice(plane.position[None], series)
    place = first.axes @ (plane.position - series.slices[z].position) / first.spacing
    x, y = np.rint(place).astype(int)
    last = np.array([x + size[1], y + size[0]])
    inside = min(x, y) >= 0 and (last <= first.size).all()
    if off > OFF_GRID or np.abs(place - [x, y]).max() > OFF_GRID or not inside:
        where = np.round(plane.position, 3).tolist()
        raise ValueError(f"has a frame of {size[::-1]} pixels at {where} mm, off the series' grid")
    return z, int(y), int(x)


def _find_slice(points: np.ndarray, series: Series) -> tuple[int, float]:
    """The slice nearest to points (n x 3), and how far off it they lie at most, in distances."""
    first = series.slices[0]
    offsets = (points - first.position) @ np.cross(*first.axes)
    z = int(np.argmin(np.abs(series.places - offsets.mean())))
    return z, float(np.abs(series.places[z] - offsets).max()) / series.distance


def _outlines(path: Path, dataset: Any, series: Series) -> Callable[[str, np.ndarray], None]:
    outlines = list(read_outlines(dataset))

    def draw(name: str, into: np.ndarray) -> None:
        for own, frame, contours in outlines:
            if own != name:
                continue
            _check_frame_of_reference(frame, series)
            one = np.zeros_like(into)
            for kind, points in contours:
                _draw_contour(kind, points, name, one, series)
            into |= one

    return draw


def _draw_contour(
    kind: str, points: np.ndarray, name: str, into: np.ndarray, series: Series
) -> None:
    if kind not in CLOSED:
        raise ValueError(f"outlines {name!r} by {kind}; allowed: {', '.join(CLOSED)}")
    z, off = _find_slice(points, series)
    if off > OFF_PLANE:
        where = np.round(points[0], 3).tolist()
        raise ValueError(f"has a contour of {name!r} at {where} mm, between the slices")
    own = series.slices[z]
    x, y = ((points - own.position) @ own.axes.T / own.spacing).T
    into[z][polygon(y, x, into[z].shape)] ^= True
