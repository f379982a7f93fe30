"""The files of a converted dataset, and how each is made."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk  # noqa: N813

from nnssl.common.files import temporary
from nnssl.convert.foreground import foreground
from nnssl.convert.inventory import Files
from nnssl.convert.lookup import Remap, look_up
from nnssl.convert.planning import PlannedCase
from nnssl.convert.readers.read import read_volume
from nnssl.convert.readers.volume import Reading, Volume
from nnssl.convert.spec import DatasetSpec
from nnssl.convert.volumes import FILE_ENDING, correct_bias_field, geometry_differences, write_image

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
            return Volume(foreground(volume.image, self.foreground), volume.sha256)
        if task.role == LABEL and self.reading.headers == "repair":
            return with_geometry_of(volume, read_volume(like, self.reading))
        return volume

    def _paths(self, files: Files) -> list[Path]:
        return [self.source / file for file in files]

    def is_copy(self, task: VolumeTask) -> bool:
        """Whether the file is compressed NIfTI that need not be opened."""
        exact = self.reading.headers == "exact" and self.reading.fourth_axis is None
        whole = len(task.files) == 1 and task.files[0].endswith(FILE_ENDING)
        changed = {IMAGE: self.n4, LABEL: self.remap is not None, MASK: True}[task.role]
        return exact and whole and not changed


def tasks_of(case: PlannedCase) -> list[VolumeTask]:
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


def with_geometry_of(label: Volume, image: Volume) -> Volume:
    """A label whose header disagrees takes the geometry of its image, if sizes agree."""
    wrong = geometry_differences(image.image, label.image)
    if not wrong or label.image.GetSize() != image.image.GetSize():
        return label
    copy = sitk.Image(label.image)
    copy.CopyInformation(image.image)
    note = f"label took the geometry of its image ({'; '.join(wrong)})"
    return Volume(copy, label.sha256, (*label.notes, note))


def perform(task: VolumeTask, recipe: VolumeRecipe, folder: Path) -> None:
    """Write one file, whole or not at all."""
    target = folder / task.target
    partial = temporary(target)
    if recipe.is_copy(task):
        shutil.copyfile(recipe.source / task.files[0], partial)
    else:
        write_image(_finished(task, recipe), partial)
    os.replace(partial, target)


def _finished(task: VolumeTask, recipe: VolumeRecipe) -> sitk.Image:
    image = recipe.read(task).image
    if task.role == IMAGE:
        return correct_bias_field(image) if recipe.n4 else image
    if task.role == MASK or recipe.remap is None:
        return image
    new = sitk.GetImageFromArray(look_up(recipe.remap, sitk.GetArrayViewFromImage(image)))
    new.CopyInformation(image)
    return new
