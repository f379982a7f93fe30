"""The files of a converted dataset: how each is read, checked and written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813

from nnssl.common.files import atomic_path
from nnssl.convert.labels import (
    Remap,
    UnknownValuesError,
    look_up,
    make_foreground_mask,
    map_values,
)
from nnssl.convert.planning import PlannedCase
from nnssl.convert.readers.read import read_volume
from nnssl.convert.sources import Files, Problem
from nnssl.convert.spec import DatasetSpec, collect_values
from nnssl.convert.volumes import (
    FILE_ENDING,
    Reading,
    Volume,
    be_quiet,
    compare_geometry,
    correct_bias_field,
    find_orientation,
    hash_of_voxels,
    write_image,
)

IMAGE, LABEL, MASK = "image", "label", "foreground"


@dataclass(frozen=True)
class VolumeTask:
    """One file of the converted dataset.

    Args:
        role: ``image``, ``label`` or ``foreground`` (a mask made from the first image).
        target: Path below the nnU-Net dataset folder.
        files: Its source files, relative to the source folder.
        channel: Channel of an image.
        like: Source files of the first image.
    """

    role: str
    target: str
    files: Files
    channel: int
    like: Files


@dataclass(frozen=True)
class VolumeRecipe:
    """What all tasks of a conversion share."""

    source: Path
    reading: Reading
    remap: Remap | None
    foreground: str
    n4: bool = False

    @classmethod
    def of(cls, spec: DatasetSpec, source: Path, n4: bool = False) -> VolumeRecipe:
        """The recipe of a spec."""
        return cls(source, spec.reading, spec.remap, spec.foreground_rule, n4)

    def read(self, task: VolumeTask) -> Volume:
        """Read the volume of a task, as it will be written but for label values and bias field.

        Raises:
            ValueError: It cannot be read, or no foreground can be found.
        """
        files, like = self._paths(task.files), self._paths(task.like)
        volume = read_volume(files, self.reading, task.channel, like)
        if task.role == MASK:
            return Volume(make_foreground_mask(volume.image, self.foreground), volume.sha256)
        if task.role == LABEL and self.reading.headers == "repair":
            return copy_geometry(volume, read_volume(like, self.reading))
        return volume

    def _paths(self, files: Files) -> list[Path]:
        return [self.source / file for file in files]

    def is_copy(self, task: VolumeTask) -> bool:
        """Whether the file is compressed NIfTI that need not be opened."""
        exact = self.reading.headers == "exact" and self.reading.fourth_axis is None
        whole = len(task.files) == 1 and task.files[0].endswith(FILE_ENDING)
        changed = {IMAGE: self.n4, LABEL: self.remap is not None, MASK: True}[task.role]
        return exact and whole and not changed


def list_tasks(case: PlannedCase) -> list[VolumeTask]:
    """All files of a case: images, then the label or the mask."""
    first = case.images[0]
    images = [
        VolumeTask(
            IMAGE, f"images{case.part}/{case.identifier}_{k:04d}{FILE_ENDING}", files, k, first
        )
        for k, files in enumerate(case.images)
    ]
    target = f"labels{case.part}/{case.identifier}{FILE_ENDING}"
    if case.mask:
        return [*images, VolumeTask(MASK, target, first, 0, first)]
    return [*images, VolumeTask(LABEL, target, case.label, 0, first)] if case.label else images


def copy_geometry(label: Volume, image: Volume) -> Volume:
    """A label whose header disagrees takes the geometry of its image, if sizes agree."""
    wrong = compare_geometry(image.image, label.image)
    if not wrong or label.image.GetSize() != image.image.GetSize():
        return label
    copy = sitk.Image(label.image)
    copy.CopyInformation(image.image)
    note = f"label took the geometry of its image ({'; '.join(wrong)})"
    return Volume(copy, label.sha256, (*label.notes, note))


def write_volume(task: VolumeTask, recipe: VolumeRecipe, folder: Path) -> None:
    """Write one file, whole or not at all."""
    target = folder / task.target
    with atomic_path(target, sole_writer=True) as part:
        if recipe.is_copy(task):
            shutil.copyfile(recipe.source / task.files[0], part)
        else:
            write_image(_finished(task, recipe), part)


def _finished(task: VolumeTask, recipe: VolumeRecipe) -> sitk.Image:
    image = recipe.read(task).image
    if task.role == IMAGE:
        return correct_bias_field(image) if recipe.n4 else image
    if task.role == MASK or recipe.remap is None:
        return image
    new = sitk.GetImageFromArray(look_up(recipe.remap, sitk.GetArrayViewFromImage(image)))
    new.CopyInformation(image)
    return new


@dataclass(frozen=True)
class CheckedCase:
    """What was found in the files of a case; size and spacing (mm) are in the order x y z.

    ``hashes`` (of the source files) and ``notes`` go by the name of the written file, ``values``
    are as written, ``voxels`` are the hashes of the images' values.
    """

    case: PlannedCase
    hashes: dict[str, str]
    size: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    orientation: str = ""
    values: tuple[float, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    voxels: tuple[str, ...] = ()


def check_case(case: PlannedCase, recipe: VolumeRecipe, labels: Mapping[str, Any]) -> CheckedCase:
    """Read all files of a case; whatever is wrong comes back as problems, never as an exception.

    ``labels`` maps names to a value or a list of values; other values are problems.
    """
    be_quiet()
    problems: list[Problem] = []
    hashes: dict[str, str] = {}
    notes: dict[str, tuple[str, ...]] = {}
    values: tuple[float, ...] = ()
    voxels: list[str] = []
    first: sitk.Image | None = None
    for task in list_tasks(case):
        if task.role != IMAGE and first is None:
            continue  # labels and masks lean on the first image, which is broken
        volume = _read(case, recipe, task, problems)
        if volume is None:
            continue
        hashes[task.target] = volume.sha256
        notes |= {task.target: volume.notes} if volume.notes else {}
        if first is None:
            first = volume.image
        if task.role == IMAGE:
            voxels.append(hash_of_voxels(volume.image))
        problems += [Problem(case.identifier, d) for d in compare_geometry(first, volume.image)]
        if task.role == LABEL:
            values = _check_values(case, volume.image, recipe, labels, problems)
    if first is None:
        return CheckedCase(case, hashes, problems=tuple(problems))
    size, spacing, axes = first.GetSize(), first.GetSpacing(), find_orientation(first)
    found = tuple(problems)
    return CheckedCase(case, hashes, size, spacing, axes, values, found, notes, tuple(voxels))


def _read(
    case: PlannedCase, recipe: VolumeRecipe, task: VolumeTask, problems: list[Problem]
) -> Volume | None:
    try:
        return recipe.read(task)
    except ValueError as error:
        problems.append(Problem(case.identifier, f"{_shown(task)} {error}"))
        return None


def _shown(task: VolumeTask) -> str:
    """The file, or the folder of many."""
    return task.files[0] if len(task.files) == 1 else task.files[0].rpartition("/")[0] + "/"


def _check_values(
    case: PlannedCase,
    label: sitk.Image,
    recipe: VolumeRecipe,
    labels: Mapping[str, Any],
    problems: list[Problem],
) -> tuple[float, ...]:
    values = np.unique(sitk.GetArrayViewFromImage(label))
    try:
        if recipe.remap is not None:
            return tuple(np.unique(map_values(recipe.remap, values)).tolist())
        if unknown := sorted(set(values.tolist()) - collect_values(dict(labels))):
            raise UnknownValuesError(unknown)
    except UnknownValuesError as error:
        allowed = _allowed(recipe, labels)
        what = f"label has the values {error.values[:10]}; allowed: {allowed}"
        problems.append(Problem(case.identifier, what))
    return tuple(values.tolist())


def _allowed(recipe: VolumeRecipe, labels: Mapping[str, Any]) -> str:
    if recipe.remap is not None:
        return ", ".join(map(str, recipe.remap))
    return ", ".join(f"{value} {name}" for name, value in labels.items())
