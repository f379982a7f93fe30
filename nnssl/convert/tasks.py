"""The files of a converted dataset: how each is read, checked and written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813

from nnssl.common.files import atomic_path, hash_json
from nnssl.convert.labels import (
    UnknownValuesError,
    look_up,
    make_foreground_mask,
    map_values,
)
from nnssl.convert.planning import Conversion, PlannedCase
from nnssl.convert.readers.read import read_volume
from nnssl.convert.sources import Files, Problem
from nnssl.convert.spec import DatasetSpec
from nnssl.convert.volumes import (
    FILE_ENDING,
    Volume,
    be_quiet,
    compare_geometry,
    correct_bias_field,
    find_orientation,
    has_bare_header,
    hash_of_voxels,
    lacks_header,
    lie_on_one_box,
    write_image,
)

IMAGE, LABEL, MASK = "image", "label", "foreground"


@dataclass(frozen=True)
class VolumeTask:
    """One file ``target`` of the converted dataset, made of the source's ``files``.

    The role is ``image``, ``label`` or ``foreground`` (a mask made from the first image); ``like``
    are the source files of the case's first image, ``frame`` is its place on their fourth axis.
    """

    role: str
    target: str
    files: Files
    channel: int
    like: Files
    frame: int = 0


def list_tasks(case: PlannedCase) -> list[VolumeTask]:
    """All files of a case: images, then the label or the mask."""
    first, image = case.images[0], f"images{case.part}/{case.identifier}_{{:04d}}{FILE_ENDING}"
    tasks = [
        VolumeTask(IMAGE, image.format(channel), files, channel, first, case.frame)
        for channel, files in enumerate(case.images)
    ]
    target = f"labels{case.part}/{case.identifier}{FILE_ENDING}"
    if case.label:
        tasks.append(VolumeTask(LABEL, target, case.label, 0, first, case.frame))
    elif case.part == "Tr":
        tasks.append(VolumeTask(MASK, target, first, 0, first, case.frame))
    return tasks


def _read(task: VolumeTask, conversion: Conversion) -> Volume:
    """Read a volume as it will be written, but for label values and bias field.

    Raises:
        ValueError: It cannot be read, or no foreground can be found.
    """
    spec, source = conversion.spec, conversion.source
    how = replace(spec.reading, frame=task.frame)
    files, like = ([source / file for file in each] for each in (task.files, task.like))
    if task.role == LABEL and spec.masks:
        volume = _join_masks(files, spec, like)
    else:
        volume = read_volume(files, how, task.channel, like)
    if task.role == MASK:
        return Volume(make_foreground_mask(volume.image, spec.foreground_rule), volume.sha256)
    if task.role == LABEL and spec.headers == "repair":
        return _repair_geometry(volume, read_volume(like, how).image)
    return volume


def _repair_geometry(label: Volume, image: sitk.Image) -> Volume:
    """A label on other axes is turned to its image; one without header takes the image's.

    Any other label stays as it is, and is refused for its geometry.
    """
    wrong = compare_geometry(image, label.image)
    if not wrong:
        return label
    new = sitk.DICOMOrient(label.image, find_orientation(image))
    if lie_on_one_box(image, new):
        note = "label was turned to its image"
    elif lacks_header(image, label.image):
        new, note = sitk.Image(label.image), "label took the geometry of its image"
    else:
        return label
    new.CopyInformation(image)
    return Volume(new, label.sha256, (*label.notes, f"{note} ({'; '.join(wrong)})"))


def _join_masks(files: list[Path], spec: DatasetSpec, like: list[Path]) -> Volume:
    """One label of the masks of all structures.

    Raises:
        ValueError: Masks of different grids; voxels in two masks, where ``overlap`` refuses them.
    """
    masks = {
        name: read_volume([file], spec.reading, like=like)
        for name, file in zip(spec.masks or (), files, strict=True)
    }
    first = next(iter(masks.values())).image
    values = np.zeros(first.GetSize()[::-1], np.uint16 if len(masks) > 255 else np.uint8)
    owners = {value: name for name, value in spec.labels.items()}
    for name, mask in masks.items():
        if wrong := compare_geometry(first, mask.image, f"mask of {name}"):
            raise ValueError(f"has another grid: {'; '.join(wrong)}")
        inside = sitk.GetArrayViewFromImage(mask.image) != 0
        if spec.overlap == "refuse" and (taken := values[inside]).any():
            raise ValueError(
                f"has {np.count_nonzero(taken)} voxels in {owners[taken.max()]!r} and in {name!r}; "
                "--overlap last gives them to the label that is named last"
            )
        values[inside] = spec.labels[name]
    joined = sitk.GetImageFromArray(values)
    joined.CopyInformation(first)
    return Volume(joined, hash_json([each.sha256 for each in masks.values()]))


def write_volume(task: VolumeTask, conversion: Conversion, folder: Path) -> None:
    """Write one file below ``folder``, whole or not at all."""
    be_quiet()
    with atomic_path(folder / task.target, sole_writer=True) as part:
        if _is_copy(task, conversion):
            shutil.copyfile(conversion.source / task.files[0], part)
        else:
            write_image(_make_image(task, conversion), part)


def _is_copy(task: VolumeTask, conversion: Conversion) -> bool:
    """Whether the file is compressed NIfTI that need not be opened."""
    spec, source = conversion.spec, conversion.source
    exact = spec.headers == "exact" and spec.fourth_axis is None and spec.nan is None
    whole = len(task.files) == 1 and task.files[0].endswith(FILE_ENDING)
    changed = {
        IMAGE: conversion.n4,
        LABEL: spec.remap is not None or spec.masks is not None,
        MASK: True,
    }
    return exact and whole and not changed[task.role] and _is_one_volume(source / task.files[0])


def _is_one_volume(path: Path) -> bool:
    """Whether a NIfTI file has three axes, and one number for each voxel."""
    image = nibabel.Nifti1Image.from_filename(path)
    return len(image.shape) == 3 and image.get_data_dtype().kind in "iuf"


def _make_image(task: VolumeTask, conversion: Conversion) -> sitk.Image:
    image, remap = _read(task, conversion).image, conversion.spec.remap
    if task.role == IMAGE and conversion.n4:
        return correct_bias_field(image)
    if task.role != LABEL or remap is None:
        return image
    new = sitk.GetImageFromArray(look_up(remap, sitk.GetArrayViewFromImage(image)))
    new.CopyInformation(image)
    return new


@dataclass
class CheckedCase:
    """What was found in the files of a case; size and spacing (mm) are in the order x y z.

    ``hashes`` (of the source files) and ``notes`` go by the name of the written file, ``values``
    are as written, ``voxels`` are the hashes of the images' values.
    """

    case: PlannedCase
    hashes: dict[str, str] = field(default_factory=dict)
    size: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    orientation: str = ""
    values: tuple[float, ...] = ()
    problems: list[Problem] = field(default_factory=list)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    voxels: list[str] = field(default_factory=list)
    has_bare_header: bool = False


def check_case(case: PlannedCase, conversion: Conversion) -> CheckedCase:
    """Read all files of a case; whatever is wrong comes back as problems, never as an exception."""
    be_quiet()
    found, first = CheckedCase(case), None
    for task in list_tasks(case):
        if task.role != IMAGE and first is None:
            continue  # labels and masks lean on the first image, which is broken
        try:
            volume = _read(task, conversion)
        except ValueError as error:
            folder = task.files[0].rpartition("/")[0]
            shown = task.files[0] if len(task.files) == 1 else f"{folder}/"
            found.problems.append(Problem(case.identifier, f"{shown} {error}"))
            continue
        image = volume.image
        found.hashes[task.target] = volume.sha256
        found.notes |= {task.target: volume.notes} if volume.notes else {}
        if first is None:
            first = image
            found.size, found.spacing = image.GetSize(), image.GetSpacing()
            found.orientation = find_orientation(image)
            found.has_bare_header = has_bare_header(image)
        channel = list(conversion.spec.channels)[task.channel]
        what = f"channel {channel}" if task.role == IMAGE else task.role
        wrong = compare_geometry(first, image, what)
        may_repair = wrong and task.role == LABEL
        if may_repair and not compare_geometry(first, _repair_geometry(volume, first).image):
            wrong[-1] += " (--headers repair would mend this)"
        found.problems += [Problem(case.identifier, difference) for difference in wrong]
        if task.role == IMAGE:
            found.voxels.append(hash_of_voxels(image))
        if task.role == LABEL:
            _check_values(image, conversion.spec, found)
    return found


def _check_values(label: sitk.Image, spec: DatasetSpec, found: CheckedCase) -> None:
    values = np.unique(sitk.GetArrayViewFromImage(label))
    try:
        mapped = map_values(spec.remap or {value: value for value in spec.values}, values)
        found.values = tuple(np.unique(mapped).tolist())
        if spec.fourth_axis == "frames" and found.values == (0,):
            what = f"label of frame {found.case.frame + 1} is empty; another frame may be meant"
            found.problems.append(Problem(found.case.identifier, what))
    except UnknownValuesError as error:
        named = [f"{value} {name}" for name, value in spec.labels.items()]
        allowed = ", ".join(map(str, spec.remap or named))
        what = f"label has the values {error.values[:10]}; allowed: {allowed}"
        found.problems.append(Problem(found.case.identifier, what))
