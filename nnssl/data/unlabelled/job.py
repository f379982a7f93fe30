"""How one image without label is checked and preprocessed: by nnU-Net's own code and plans."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813

from nnssl.common.files import TEMPORARY, hash_file
from nnssl.convert.readers.pictures import ENDINGS as PICTURES
from nnssl.convert.readers.read import read_frames as read_whole_cine
from nnssl.convert.readers.read import read_volume, with_partners
from nnssl.convert.sources import Problem
from nnssl.convert.volumes import Reading, be_quiet, last_line
from nnssl.data.thumbnails import read_thumbnail
from nnssl.data.unlabelled.frames import count_frames, read_frames
from nnssl.data.unlabelled.records import (
    SourceFile,
    UnlabelledImage,
    encode_thumbnail,
    hash_preprocessing,
    record_file,
    write_image_record,
)
from nnssl.data.unlabelled.sources import ImageSource
from nnssl.nnunet.images import image_file, open_image, read_direction, read_properties
from nnssl.nnunet.plans import count_channels

IMAGE = "image"  # name of what is being preprocessed
READS_PICTURES = "NaturalImage2DIO"


@dataclass(frozen=True)
class PreprocessingPlan:
    """Plans, configuration and channels by which images are preprocessed."""

    plans: dict[str, Any] = field(repr=False)
    configuration: str
    dataset_json: dict[str, Any] = field(repr=False)

    @cached_property
    def manager(self) -> Any:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return PlansManager(self.plans)

    @cached_property
    def configured(self) -> Any:
        return self.manager.get_configuration(self.configuration)

    @property
    def data_identifier(self) -> str:
        """Name of the folder of preprocessed images."""
        return str(self.configured.data_identifier)

    @property
    def channels(self) -> int:
        return count_channels(self.dataset_json)

    @property
    def voxels(self) -> str:
        """Hash of what decides the preprocessed voxels."""
        return hash_preprocessing(self.plans, self.configured.configuration)

    @cached_property
    def reader(self) -> Any:
        """nnU-Net's reader that the plans name."""
        return self.manager.image_reader_writer_class()

    @property
    def file_ending(self) -> str:
        """Of the dataset's raw files."""
        return str(self.dataset_json.get("file_ending", ".nii.gz"))

    @property
    def endings(self) -> tuple[str, ...]:
        """What the reader and the dataset add to the file endings that nnssl reads."""
        return tuple({self.file_ending.lower(), *self.reader.supported_file_endings})

    def reads(self, path: Path) -> bool:
        """Whether the reader takes the file as it is."""
        endings = tuple(self.reader.supported_file_endings)
        if type(self.reader).__name__ == READS_PICTURES:
            endings += PICTURES
        return path.name.lower().endswith(endings)

    def preprocess(self, files: list[Path], scratch: Path) -> tuple[Path, Any]:
        """nnU-Net's preprocessing, without a label, of one file per channel.

        Returns:
            File of the image in `scratch`, and nnU-Net's properties.
        """
        preprocessor = self.configured.preprocessor_class(verbose=False)
        names = [str(file) for file in files]
        target = str(scratch / IMAGE)
        preprocessor.run_case_save(
            target, names, None, self.manager, self.configured, self.dataset_json
        )
        return image_file(scratch, IMAGE), read_properties(Path(f"{target}.pkl"))


@dataclass(frozen=True)
class CheckedImage:
    """A source whose files were read."""

    source: ImageSource
    frames: int | None = None  # number of frames; None: one volume without fourth axis
    files: tuple[SourceFile, ...] = ()  # with size, time and hash
    problems: tuple[Problem, ...] = ()

    @property
    def names(self) -> dict[int, str]:
        """Number from 1 -> identifier; frames are named `<identifier>_frame07`."""
        identifier, count = self.source.identifier, self.frames or 1
        if count == 1:
            return {1: identifier}
        digits = max(2, len(str(count)))
        return {k: f"{identifier}_frame{k:0{digits}d}" for k in range(1, count + 1)}


def stamp_files(root: Path, source: ImageSource) -> tuple[SourceFile, ...]:
    """Path, size and time of the files of a source."""
    paths = with_partners([root / path for path in source.files])
    found = [(Path(os.path.relpath(path, root)).as_posix(), path.stat()) for path in paths]
    return tuple(SourceFile(path, each.st_size, each.st_mtime_ns) for path, each in found)


def check_source(source: ImageSource, root: Path, plan: PreprocessingPlan) -> CheckedImage:
    """Read every voxel; whatever is wrong comes back as a problem, never as an exception."""
    be_quiet()
    try:
        files = tuple(
            replace(f, sha256=hash_file(root / f.path)) for f in stamp_files(root, source)
        )
        channels = source.locate(root)
        frames = _count_frames(channels)
        for paths in channels:
            if frames is None:
                read_volume(paths, Reading(channels=plan.channels))
            else:
                read_whole_cine(paths[0])
        with TemporaryDirectory() as folder:
            first = next(iter(_make_readable(channels, plan, Path(folder), {1})))[1]
            _check_reading(first, plan)
    except (ValueError, OSError) as error:
        return CheckedImage(source, problems=(Problem(source.place, str(error)),))
    return CheckedImage(source, frames, files)


def write_images(
    checked: CheckedImage,
    numbers: Collection[int],
    root: Path,
    collection: Path,
    plan: PreprocessingPlan,
) -> None:
    """Preprocess frames of a source (1: a single volume); an image counts with its record."""
    be_quiet()
    channels = checked.source.locate(root)
    with TemporaryDirectory(dir=collection, prefix=TEMPORARY) as folder:
        scratch = Path(folder)
        for number, files in _make_readable(channels, plan, scratch, numbers):
            with TemporaryDirectory(dir=scratch) as own:
                made, properties = plan.preprocess(files, Path(own))
                record = _make_record(checked, number, made, properties, plan)
                # a record that is there is of another image
                record_file(collection, record.identifier).unlink(missing_ok=True)
                os.replace(made, collection / f"{record.identifier}{made.suffix}")
            write_image_record(collection, record)


def _make_record(
    checked: CheckedImage, number: int, made: Path, properties: Any, plan: PreprocessingPlan
) -> UnlabelledImage:
    shape = [int(n) for n in open_image(made).shape]
    return UnlabelledImage(
        identifier=checked.names[number],
        patient=checked.source.patient,
        place=checked.source.place,
        files=checked.files,
        frame=number if len(checked.names) > 1 else None,
        frames=len(checked.names),
        channels=shape[0],
        shape=(shape[1], shape[2], shape[3]),
        spacing=tuple(float(x) for x in properties["spacing"]),
        direction=tuple(read_direction(properties)),
        orientation=_find_orientation(properties),
        voxels=plan.voxels,
        thumbnail=encode_thumbnail(read_thumbnail(made)),
    )


def _make_readable(
    channels: list[list[Path]], plan: PreprocessingPlan, scratch: Path, numbers: Collection[int]
) -> Iterator[tuple[int, list[Path]]]:
    """Per volume the files that the plans' reader takes: the source's own, or NIfTI in scratch."""
    whole = all(len(paths) == 1 and plan.reads(paths[0]) for paths in channels)
    if whole and _count_frames(channels) is None:
        yield 1, [paths[0] for paths in channels]
        return
    for together in zip(*(read_frames(paths, numbers) for paths in channels), strict=True):
        files = [scratch / f"volume_{channel:04d}.nii" for channel in range(len(together))]
        for file, (_, volume) in zip(files, together, strict=True):
            volume.write(file)
        yield together[0][0], files


def _count_frames(channels: list[list[Path]]) -> int | None:
    counts = {count_frames(paths) for paths in channels}
    if len(counts) > 1:
        raise ValueError(f"has channels with different numbers of frames: {counts}")
    return counts.pop()


def _check_reading(files: list[Path], plan: PreprocessingPlan) -> None:
    try:
        data, _ = plan.reader.read_images([str(file) for file in files])
    except Exception as error:  # readers of nnU-Net fail in many ways; all get one sentence
        kind, advice = type(plan.reader).__name__, ""
        if len(files) > 1:
            advice = "; channels of an image need the same size and spacing"
        raise ValueError(
            f"cannot be read by the plans' reader {kind} ({last_line(error)}){advice}"
        ) from error
    if len(data) != plan.channels:
        raise ValueError(
            f"has {len(data)} channel{'s' * (len(data) != 1)}, the plans have {plan.channels}; "
            "channels are files that end in _0000, _0001 and so on"
        )
    if not np.isfinite(data).all():
        raise ValueError("holds values that are not finite")


def _find_orientation(properties: Mapping[str, Any]) -> str:
    """Where the axes x, y, z of an image grow, for instance `LPS`, from nnU-Net's properties."""
    matrix = np.array(read_direction(properties)).reshape(3, 3)
    if "nibabel_stuff" in properties:  # in NIfTI's world, where x grows to the right
        matrix[:2] *= -1
    letters = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(matrix.ravel())
    return str(letters)
