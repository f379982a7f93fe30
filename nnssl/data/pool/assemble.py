"""Which cases a pool of datasets has, and its folds; everything is checked, nothing is written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.common.files import sha256_of
from nnssl.convert.sources import ConversionError, Problem
from nnssl.data.pool.members import SIDES, Patient, PoolMember
from nnssl.nnunet.splits import Split

REORIENTING = "NibabelIOWithReorient"
LABELS = {"background": 0, "foreground": 1}
CHANNEL = "mixed"
MOST_NAMED = 10


@dataclass(frozen=True)
class PoolCase:
    """One channel of one case of a member.

    Attributes:
        identifier: Identifier in the pool, ``<id of the member>_<case>``, and ``_c<channel>`` where
            the member has several channels.
        member: The dataset it comes from.
        case: Its identifier there.
        channel: Number of the channel.
    """

    identifier: str
    member: PoolMember
    case: str
    channel: int

    @property
    def image(self) -> Path:
        """The file that has this channel."""
        files = self.member.images[self.case]
        return Path(files[self.channel if len(files) > 1 else 0])

    @property
    def index(self) -> int:
        """Number of this channel in its file."""
        return 0 if len(self.member.images[self.case]) > 1 else self.channel

    @property
    def source(self) -> str:
        """Dataset and case that it comes from."""
        return f"{self.member.folder}/{self.case}"

    @property
    def modality(self) -> str:
        """Name of the channel where there are several, else the recorded modality."""
        recorded = self.member.records[self.case].modality
        several = len(self.member.channels) > 1 or recorded == "unknown"
        return self.member.channels[self.channel] if several else recorded

    @property
    def orientation(self) -> str | None:
        """Recorded direction in which the axes x, y, z of the reader's array grow."""
        if self.member.reader == REORIENTING:
            return "RAS"
        return self.member.records[self.case].orientation


@dataclass(frozen=True)
class DatasetPool:
    """Cases and folds of a pool.

    Attributes:
        folder: ``DatasetXXX_NAME`` of the pool.
        members: Its members, in the order of their ids.
        cases: All cases, sorted by identifier.
        splits: Fold f joins the folds f of all members.
    """

    folder: str
    members: tuple[PoolMember, ...]
    cases: tuple[PoolCase, ...]
    splits: Split

    @property
    def job(self) -> str:
        """Hash of members, images and folds; equal jobs are the same pool."""
        images = {c.identifier: [c.source, c.image.name, c.index] for c in self.cases}
        return sha256_of({"images": images, "splits": self.splits})

    def description(self, raw: Path) -> dict[str, Any]:
        """``dataset.json``; images are referenced, by relative paths where they lie in ``raw``."""
        home = raw / self.folder
        dataset = {
            case.identifier: {
                "images": [_reference(case.image, home)],
                "label": _reference(Path(case.member.labels[case.case]), home),
            }
            for case in self.cases
        }
        return {
            "channel_names": {"0": CHANNEL},
            "labels": LABELS,
            "numTraining": len(self.cases),
            "file_ending": ".nii.gz",
            "name": self.folder.split("_", 1)[1],
            "description": f"pool of {', '.join(member.folder for member in self.members)}; made "
            "by nnssl_pool, which also preprocesses it (nnUNetv2_preprocess would treat all alike)",
            "dataset": dataset,
        }

    def marks(self) -> dict[str, Any]:
        """What the plans, and so every checkpoint, say of the pool."""
        origins = {m.folder: sorted({r.dataset for r in m.records.values()}) for m in self.members}
        splits = {member.folder: sha256_of(member.splits) for member in self.members}
        return {"members": origins, "folds": len(self.splits), "splits": splits}

    def fingerprint(self, intensities: dict[str, float]) -> dict[str, Any]:
        """nnU-Net's fingerprint of the pool: the members' ones, axes in the order of the arrays."""
        rows = [(m, m.transpose) for m in self.members for _ in m.channels]
        spacings = [mm for m, axes in rows for mm in m.spacings[:, axes].tolist()]
        shapes = [size for m, axes in rows for size in m.shapes[:, axes].astype(int).tolist()]
        sizes = [m.relative_size for m, _ in rows for _ in range(len(m.spacings))]
        return {
            "spacings": spacings,
            "shapes_after_crop": shapes,
            "foreground_intensity_properties_per_channel": {"0": intensities},
            "median_relative_size_after_cropping": sorted(sizes)[len(sizes) // 2],
        }


def assemble(folder: str, members: Sequence[PoolMember]) -> DatasetPool:
    """Join datasets; fold f of the pool trains on the union of what their folds f train on.

    Args:
        folder: ``DatasetXXX_NAME`` of the pool.
        members: The datasets.

    Raises:
        ConversionError: Members, folds or patients do not fit together; every problem is named.
    """
    members = tuple(sorted(members, key=lambda member: member.number))
    numbers = [member.number for member in members]
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise ValueError(f"dataset {twice} is named twice (--from)")
    folds = min(len(member.splits) for member in members)
    cases = [c for m in members for case in m.cases(folds) for c in _channels(m, case)]
    splits = [_fold(members, fold) for fold in range(folds)]
    if problems := [*_parted(members, folds), *_tested(members, folds)]:
        raise ConversionError(f"{folder} cannot be made; nothing was written:", problems)
    return DatasetPool(
        folder, members, tuple(sorted(cases, key=lambda case: case.identifier)), splits
    )


def _channels(member: PoolMember, case: str) -> Iterator[PoolCase]:
    for channel in range(len(member.channels)):
        ending = f"_c{channel}" if len(member.channels) > 1 else ""
        yield PoolCase(f"{member.number:03d}_{case}{ending}", member, case, channel)


def _fold(members: Sequence[PoolMember], fold: int) -> dict[str, list[str]]:
    return {
        side: sorted(
            channel.identifier
            for member in members
            for case in member.splits[fold][side]
            for channel in _channels(member, case)
        )
        for side in SIDES
    }


def _parted(members: Sequence[PoolMember], folds: int) -> Iterator[Problem]:
    """Patients that one member trains on and another validates on."""
    for fold in range(folds):
        trained, validated = (_homes(members, fold, side) for side in SIDES)
        if both := sorted(trained.keys() & validated.keys()):
            homes = sorted({trained[both[0]], validated[both[0]]})
            yield Problem(
                f"fold {fold}",
                f"{len(both)} patients are in training and in validation: {_named(both)} "
                f"({' and '.join(homes)}); give both datasets the same folds (splits_final.json), "
                "leave one of them out, or, if they are different people, make their keys differ "
                "in nnssl/cases.json",
            )


def _homes(members: Sequence[PoolMember], fold: int, side: str) -> dict[Patient, str]:
    return {m.patient(case): m.folder for m in members for case in m.splits[fold][side]}


def _tested(members: Sequence[PoolMember], folds: int) -> Iterator[Problem]:
    """Patients of one member's imagesTs that another member would bring in."""
    for tested in members:
        for member in members:
            patients = {member.patient(case) for case in member.cases(folds)}
            if both := sorted(patients & tested.held_out):
                what = f"{len(both)} patients are in imagesTs of {tested.folder}: {_named(both)}"
                yield Problem(member.folder, f"{what}; leave one of the two datasets out")


def _named(patients: Sequence[Patient]) -> str:
    more = ", ..." if len(patients) > MOST_NAMED else ""
    return ", ".join(f"{patient} of {dataset}" for dataset, patient in patients[:MOST_NAMED]) + more


def _reference(file: Path, home: Path) -> str:
    """Relative to the pool's folder for files beside it, so that ``nnUNet_raw`` may move."""
    absolute = Path(os.path.abspath(file))
    if absolute.is_relative_to(os.path.abspath(home.parent)):
        return os.path.relpath(absolute, os.path.abspath(home))
    return str(absolute)
