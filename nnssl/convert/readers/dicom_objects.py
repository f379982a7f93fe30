"""DICOM objects that ITK cannot read: many frames in one file, segments, outlines."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.convert.volumes import last_line

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # SEG, label map
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"  # RTSTRUCT
NORMALS = ("sagittal", "coronal", "transversal")  # of slices whose normal is nearest x, y, z


@dataclass(frozen=True)
class Plane:
    """Where a frame lies: mm, LPS; ``axes`` run along columns and rows, as ``spacing`` does."""

    position: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]


def require(package: str) -> Any:
    """A package of the extra ``dicom``.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"the package {package} is missing, which reads DICOM trees, SEG, RTSTRUCT and "
            "multi-frame images; install it with: pip install 'nnssl[dicom]'"
        ) from error


def is_label(dataset: Any) -> bool:
    """Whether an object is a SEG (also as a label map) or an RTSTRUCT."""
    return dataset.get("SOPClassUID") in (*SEGMENTATIONS, STRUCTURE_SET)


def list_structures(dataset: Any) -> list[str]:
    """Names of the segments of a SEG, of the outlined regions of an RTSTRUCT."""
    if dataset.SOPClassUID == STRUCTURE_SET:
        return [str(each.ROIName).strip() for each in dataset.StructureSetROISequence]
    return [label_of(each) for each in dataset.SegmentSequence]


def label_of(segment: Any) -> str:
    """Name of a segment of a SEG."""
    return str(segment.SegmentLabel).strip()


def read_planes(dataset: Any) -> list[Plane]:
    """One plane of an ordinary slice, one per frame of a multi-frame object; else none.

    Raises:
        AttributeError: A frame has no place.
    """
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return [
            Plane(
                _numbers(group(dataset, frame, "PlanePosition").ImagePositionPatient),
                _numbers(group(dataset, frame, "PlaneOrientation").ImageOrientationPatient, 2),
                _spacing(group(dataset, frame, "PixelMeasures")),
            )
            for frame in dataset.PerFrameFunctionalGroupsSequence
        ]
    needed = (dataset.get(f"Image{each}Patient") for each in ("Position", "Orientation"))
    position, axes = needed
    if not position or not axes or not dataset.get("PixelSpacing"):
        return []
    return [Plane(_numbers(position), _numbers(axes, 2), _spacing(dataset))]


def group(dataset: Any, frame: Any, name: str) -> Any:
    """What a frame says of itself, or all frames together: ``PlanePosition``, for instance."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or [{}]
    for each in (frame, shared[0]):
        if found := each.get(f"{name}Sequence"):
            return found[0]
    raise AttributeError(f"frame without {name}")


def name_plane(axes: np.ndarray) -> str:
    """Direction of slices: ``transversal``, ``coronal`` or ``sagittal``, whichever is nearest."""
    return NORMALS[int(np.argmax(np.abs(np.cross(*axes))))]


def read_frames_of(path: Path) -> np.ndarray:
    """All frames (frame, y, x) of a multi-frame image, as the scanner means them (HU, ...).

    Raises:
        ValueError: Colours.
    """
    image = require("highdicom").imread(path)
    if image.SamplesPerPixel != 1:
        raise ValueError(f"has colours in {path.name}")
    values = image.get_frames(apply_real_world_transform=False)
    whole = (values == np.rint(values)).all() and np.abs(values).max() < 2**31
    array: np.ndarray = values.astype(np.int32 if whole else np.float32)
    return array


@contextmanager
def explain_damage() -> Iterator[None]:
    """A damaged object makes the libraries raise anything; it becomes one sentence."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"cannot be read ({type(error).__name__}: {last_line(error)})") from error


def read_outlines(dataset: Any) -> Iterator[tuple[str, str, list[tuple[str, np.ndarray]]]]:
    """Name, frame of reference and contours of what an RTSTRUCT outlines.

    A contour is its type (``CLOSED_PLANAR``) and its points (n x 3; mm, LPS).
    """
    outlines = {int(each.ReferencedROINumber): each for each in dataset.ROIContourSequence}
    for roi in dataset.StructureSetROISequence:
        outline = outlines.get(int(roi.ROINumber))
        contours = (outline and outline.get("ContourSequence")) or ()
        name, frame = str(roi.ROIName).strip(), str(roi.ReferencedFrameOfReferenceUID)
        yield (
            name,
            frame,
            [
                (each.ContourGeometricType, _numbers(each.ContourData).reshape(-1, 3))
                for each in contours
            ],
        )


def _numbers(values: Any, rows: int = 0) -> np.ndarray:
    array = np.array([float(value) for value in values])
    return array.reshape(rows, -1) if rows else array


def _spacing(dataset: Any) -> tuple[float, float]:
    rows, columns = dataset.PixelSpacing
    return float(columns), float(rows)
