"""One case of a pool, preprocessed by nnU-Net with the case's own settings."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl.common.files import read_json, write_json
from nnssl.convert.labels import make_foreground_mask
from nnssl.convert.volumes import be_quiet, find_orientation
from nnssl.data.pool.assemble import LABELS
from nnssl.data.pool.settings import CaseSettings, stored_orientation
from nnssl.nnunet.paths import own_folder

ENDINGS = ("_seg.b2nd", ".pkl", ".b2nd")  # the image comes last: nnU-Net lists cases by it


@dataclass(frozen=True)
class Folders:
    """Where the files of one configuration go: nnU-Net's (`data_identifier`), and our own."""

    cases: Path
    own: Path

    @classmethod
    def of(cls, preprocessed: Path, data_identifier: str) -> Folders:
        cases = preprocessed / data_identifier
        return cls(cases, own_folder(cases) / "pool")

    def record(self, identifier: str) -> Path:
        return self.own / f"{identifier}.json"


@dataclass(frozen=True)
class PoolTask:
    """What one worker does.

    Attributes:
        identifier: identifier in the pool.
        source: dataset and case that it comes from.
        image: file with the image.
        index: number of the channel in this file.
        orientation: recorded letters of the reader's axes, or None.
        settings: the case's own.
        folders: where the files go.
    """

    identifier: str
    source: str
    image: Path
    index: int
    orientation: str | None
    settings: CaseSettings
    folders: Folders

    def wanted(self) -> dict[str, Any]:
        """What a finished record must say."""
        return {
            "source": self.source,
            "image": self.image.name,
            "channel": self.index,
            "stamp": [self.image.stat().st_size, self.image.stat().st_mtime_ns],
            **self.settings.to_dict(),
        }

    def record(self) -> dict[str, Any] | None:
        """The record of this case where it is finished and its files are those that were written.

        Raises:
            FileNotFoundError: the image is not there.
        """
        file = self.folders.record(self.identifier)
        if not file.is_file():
            return None
        found: dict[str, Any] = read_json(file)
        asked = all(found.get(key) == value for key, value in self.wanted().items())
        whole = found.get("bytes") == sizes(self.folders.cases, self.identifier)
        return found if asked and whole else None


def sizes(folder: Path, identifier: str) -> list[int]:
    """Bytes of the files of a case; -1 for a missing one."""
    files = [folder / f"{identifier}{ending}" for ending in ENDINGS]
    return [file.stat().st_size if file.is_file() else -1 for file in files]


class PoolPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessor on one channel of a file, with a mask made from the image as label.

    No label is read.
    """

    def __init__(self, index: int, rule: str) -> None:
        super().__init__(verbose=False)
        self.index, self.rule = index, rule

    def run_case(
        self,
        image_files: Sequence[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: Any,
        dataset_json: Any,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Data (1, Z, Y, X), mask (1, Z, Y, X) and properties; replaces the reading only."""
        data, properties = plans_manager.image_reader_writer_class().read_images(list(image_files))
        data = data[self.index : self.index + 1]
        if not np.isfinite(data).all():
            raise ValueError("has values that are not finite (NaN or infinity)")
        mask = sitk.GetArrayFromImage(
            make_foreground_mask(sitk.GetImageFromArray(data[0]), self.rule)
        )
        return self.run_case_npy(
            data,
            mask[None].astype(np.int8),
            properties,
            plans_manager,
            configuration_manager,
            dataset_json,
        )


def preprocess(task: PoolTask, plans: Mapping[str, Any], configuration: str) -> None:
    """Write the files of a case and its record; a case is there as a whole or not at all.

    Args:
        task: the case.
        plans: of the pool; spacing, normalisation, transposition and reader become the case's.
        configuration: `2d` or `3d_fullres`, for instance.

    Raises:
        ValueError: names the case, its file and the cause.
    """
    be_quiet()
    work = task.folders.own / f"partial_{task.identifier}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    wanted = task.wanted()
    try:
        shape = _write(task, plans, configuration, work)
        letters = task.orientation or _orientation(task.image)
    except Exception as error:  # readers and nnU-Net fail in many ways; all get the case's name
        raise ValueError(f"{task.identifier} ({task.image}): {error}") from error
    task.folders.record(task.identifier).unlink(missing_ok=True)
    for ending in ENDINGS:
        name = f"{task.identifier}{ending}"
        os.replace(work / name, task.folders.cases / name)
    work.rmdir()
    found = {
        "sha256": sha256(task.image.read_bytes()).hexdigest(),
        "orientation": stored_orientation(letters, task.settings.transpose),
        "shape": shape,
        "bytes": sizes(task.folders.cases, task.identifier),
    }
    write_json(task.folders.record(task.identifier), {**wanted, **found})


def _write(task: PoolTask, plans: Mapping[str, Any], configuration: str, folder: Path) -> list[int]:
    own = PlansManager(case_plans(plans, configuration, task.settings))
    manager = own.get_configuration(configuration)
    target = str(folder / task.identifier)
    preprocessor = PoolPreprocessor(task.index, task.settings.foreground)
    description = {"channel_names": {"0": "mixed"}, "labels": LABELS, "file_ending": ".nii.gz"}
    preprocessor.run_case_save(target, [str(task.image)], None, own, manager, description)
    import blosc2

    return [int(n) for n in blosc2.open(f"{target}.b2nd", mode="r").shape[1:]]


def case_plans(
    plans: Mapping[str, Any], configuration: str, settings: CaseSettings
) -> dict[str, Any]:
    """A copy of the plans that says what is true of one case."""
    own = copy.deepcopy(dict(plans))
    axes = settings.transpose
    own["transpose_forward"] = list(axes)
    own["transpose_backward"] = [axes.index(axis) for axis in range(3)]
    own["image_reader_writer"] = settings.reader
    own["foreground_intensity_properties_per_channel"] = {"0": dict(settings.intensities)}
    own["configurations"][configuration].update(
        spacing=list(settings.spacing),
        normalization_schemes=[settings.normalization],
        use_mask_for_norm=[settings.use_mask],
    )
    return own


def _orientation(image: Path) -> str | None:
    """Letters of the axes x, y, z of a volume; None where the file has no three of them."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(image))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # a format of another reader
        return None
    if len(reader.GetDirection()) != 9:
        return None
    volume = sitk.Image([1, 1, 1], sitk.sitkUInt8)
    volume.SetDirection(reader.GetDirection())
    return find_orientation(volume)
