"""One case of a pool, preprocessed by nnU-Net with the case's own settings."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl.common.files import hash_file, read_json, stamp_file, write_json
from nnssl.convert.labels import make_foreground_mask
from nnssl.convert.volumes import be_quiet, find_orientation
from nnssl.data.pool.members import CHANNEL, LABELS, PoolCase
from nnssl.data.pool.settings import CaseSettings, transpose_orientation
from nnssl.nnunet.images import open_image
from nnssl.nnunet.paths import own_folder

ENDINGS = ("_seg.b2nd", ".pkl", ".b2nd")  # the image comes last: nnU-Net lists cases by it
RECORDS = "pool"  # in nnssl's own folder of the configuration


@dataclass(frozen=True)
class PoolTask:
    """What one worker does; it holds nothing of the other cases."""

    identifier: str
    source: str  # dataset and case that it comes from
    image: Path  # file with the image
    index: int  # number of the channel in this file
    orientation: str | None  # recorded letters of the reader's axes
    settings: CaseSettings
    folder: Path  # nnU-Net's folder of the configuration

    @classmethod
    def of(cls, case: PoolCase, settings: CaseSettings, folder: Path) -> PoolTask:
        of_case = (case.identifier, case.source, case.image, case.index, case.orientation)
        return cls(*of_case, settings, folder)

    @property
    def record_file(self) -> Path:
        """Where the record of the finished case lies."""
        return own_folder(self.folder) / RECORDS / f"{self.identifier}.json"

    def wanted(self) -> dict[str, Any]:
        """What a finished record must say."""
        return {
            "source": self.source,
            "image": self.image.name,
            "channel": self.index,
            "stamp": stamp_file(self.image),
            **asdict(self.settings),
        }

    def is_done(self) -> bool:
        """Whether the files are there as they were written, from the image as it is now."""
        if not self.record_file.is_file():
            return False
        found = read_json(self.record_file)
        asked = all(found.get(key) == value for key, value in self.wanted().items())
        return asked and found.get("bytes") == measure_files(self.folder, self.identifier)


def measure_files(folder: Path, identifier: str) -> list[int]:
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
        made = make_foreground_mask(sitk.GetImageFromArray(data[0]), self.rule)
        mask = sitk.GetArrayFromImage(made)[None].astype(np.int8)
        return self.run_case_npy(
            data, mask, properties, plans_manager, configuration_manager, dataset_json
        )


def preprocess(task: PoolTask, plans: Mapping[str, Any], configuration: str) -> None:
    """Write the files of a case and its record; a case is there as a whole or not at all.

    Args:
        plans: of the pool; spacing, normalisation, transposition and reader become the case's.
    """
    be_quiet()
    work = task.record_file.with_name(f"partial_{task.identifier}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    wanted = task.wanted()
    try:
        shape = _write(task, plans, configuration, work)
        letters = task.orientation or _read_orientation(task.image)
    except Exception as error:  # readers and nnU-Net fail in many ways; all get the case's name
        raise ValueError(f"{task.identifier} ({task.image}): {error}") from error
    task.record_file.unlink(missing_ok=True)
    for ending in ENDINGS:
        name = f"{task.identifier}{ending}"
        os.replace(work / name, task.folder / name)
    work.rmdir()
    found = {
        "sha256": hash_file(task.image),
        "orientation": transpose_orientation(letters, task.settings.transpose),
        "shape": shape,
        "bytes": measure_files(task.folder, task.identifier),
    }
    write_json(task.record_file, {**wanted, **found})


def _write(task: PoolTask, plans: Mapping[str, Any], configuration: str, folder: Path) -> list[int]:
    own = PlansManager(_adapt_plans(plans, configuration, task.settings))
    manager = own.get_configuration(configuration)
    target = folder / task.identifier
    preprocessor = PoolPreprocessor(task.index, task.settings.foreground)
    description = {"channel_names": {"0": CHANNEL}, "labels": LABELS, "file_ending": ".nii.gz"}
    preprocessor.run_case_save(str(target), [str(task.image)], None, own, manager, description)
    return [int(n) for n in open_image(target.with_name(f"{target.name}.b2nd")).shape[1:]]


def _adapt_plans(
    plans: Mapping[str, Any], configuration: str, settings: CaseSettings
) -> dict[str, Any]:
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


def _read_orientation(image: Path) -> str | None:
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
