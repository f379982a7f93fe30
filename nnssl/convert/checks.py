"""Checks that open every file of a case before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813

from nnssl.convert.inventory import Problem
from nnssl.convert.lookup import UnknownValuesError, targets
from nnssl.convert.planning import PlannedCase
from nnssl.convert.readers.volume import Volume
from nnssl.convert.spec import values_of
from nnssl.convert.tasks import IMAGE, LABEL, VolumeRecipe, VolumeTask, tasks_of
from nnssl.convert.volumes import be_quiet, geometry_differences, hash_of_voxels, orientation_of


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

    Args:
        case: The case.
        recipe: How its files become volumes.
        labels: Label name -> value or list of values; other values are problems.
    """
    be_quiet()
    problems: list[Problem] = []
    hashes: dict[str, str] = {}
    notes: dict[str, tuple[str, ...]] = {}
    values: tuple[float, ...] = ()
    voxels: list[str] = []
    first: sitk.Image | None = None
    for task in tasks_of(case):
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
        problems += [Problem(case.identifier, d) for d in geometry_differences(first, volume.image)]
        if task.role == LABEL:
            values = _check_values(case, volume.image, recipe, labels, problems)
    if first is None:
        return CheckedCase(case, hashes, problems=tuple(problems))
    size, spacing, axes = first.GetSize(), first.GetSpacing(), orientation_of(first)
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
            return tuple(np.unique(targets(recipe.remap, values)).tolist())
        if unknown := sorted(set(values.tolist()) - values_of(dict(labels))):
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
