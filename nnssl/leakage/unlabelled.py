"""Which images without labels a run trains on: not those of held-out patients, nor their copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.data.case_table import Case, PositionAxis, find_anatomical_axis
from nnssl.data.copies import (
    find_copies,
    is_beyond_likeness,
    load_case_thumbnails,
    measure_likeness,
)
from nnssl.data.thumbnails import stack_thumbnails
from nnssl.data.unlabelled.job import PreprocessingPlan
from nnssl.data.unlabelled.records import (
    UnlabelledImage,
    find_collections,
    read_images,
    read_manifest,
)
from nnssl.leakage.seen import SEEN_IMAGE_KEYS, find_images, read_seen_images
from nnssl.leakage.test_set import TestSet, load_test_thumbnails, read_test_set
from nnssl.nnunet.cases import read_all_cases, read_cases
from nnssl.nnunet.paths import own_folder

COMMAND = "nnssl_preprocess_unlabelled"
HASH = 16  # letters of the hash of an image that a checkpoint keeps
MOST_NAMED = 5
OF_VALIDATION = "patients of validation cases"
OF_TEST = "patients of test images"
COPIES = "patients unknown, copies of validation or test images"
NOT_COMPARED = "patients unknown, test images not at hand to compare with"


@dataclass(frozen=True)
class ChosenImage:
    """One image without label that may be trained on."""

    folder: Path  # of its collection, which has the folder's name
    image: UnlabelledImage  # its record
    dataset: str  # of origin: its patient's in the dataset, else the collection's name

    @property
    def collection(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class ChosenImages:
    """What a run trains on beside its training cases."""

    members: tuple[ChosenImage, ...] = ()  # the images, sorted by collection and identifier
    left_out: Mapping[str, int] = field(default_factory=dict)  # why -> number of images

    def describe(self) -> str:
        """One line for the log."""
        patients = len({(each.dataset, each.image.patient) for each in self.members})
        names = ", ".join(sorted({each.collection for each in self.members})) or "none"
        text = f"{len(self.members)} images without labels of {patients} patients ({names})"
        reasons = [f"{count} ({why})" for why, count in self.left_out.items()]
        return f"{text}; left out: {', '.join(reasons) or 'none'}"

    def record(self) -> dict[str, Any]:
        """Plain data for a checkpoint, by which `find_recorded` finds the same images."""
        images: dict[str, dict[str, list[str]]] = {}
        for each in self.members:
            lists = images.setdefault(each.collection, {key: [] for key in SEEN_IMAGE_KEYS})
            image = each.image
            values = (image.identifier, image.patient, each.dataset, image.content[:HASH])
            for key, value in zip(SEEN_IMAGE_KEYS, values, strict=True):
                lists[key].append(value)
        return {"images": images, "left_out": dict(self.left_out)}

    def make_cases(
        self,
        training: Sequence[Case],
        dataset: Path,
        transpose: Sequence[int],
        position_axis: PositionAxis,
    ) -> list[Case]:
        """The images as cases of the sampler, numbered like the training cases that they join.

        Patients and datasets of origin that training cases have keep their numbers, so that images
        of one patient count as one patient; others get numbers of their own.
        """
        records = read_cases(dataset, [case.identifier for case in training])
        patients = {records[case.identifier].key: case.patient for case in training}
        datasets = {records[case.identifier].dataset: case.dataset for case in training}
        next_patient = count(max(patients.values(), default=-1) + 1)
        next_origin = count(max(datasets.values(), default=-1) + 1)
        made = []
        for member in self.members:
            image, key = member.image, (member.dataset, member.image.patient)
            if key not in patients:
                patients[key] = next(next_patient)
            if member.dataset not in datasets:
                datasets[member.dataset] = next(next_origin)
            patient, origin = patients[key], datasets[member.dataset]
            axis, sign = find_anatomical_axis(image.direction, transpose, position_axis)
            case = Case(image.identifier, patient, origin, image.shape, axis, sign, member.folder)
            made.append(case)
        return made


@dataclass(frozen=True)
class PretrainingFold:
    """A fold of a dataset: what is trained on, and what is held back."""

    preprocessed: Path  # nnU-Net's folder of the configuration
    plan: PreprocessingPlan
    training: tuple[str, ...]  # identifiers
    validation: tuple[str, ...]  # identifiers; none for fold `all`

    @property
    def dataset(self) -> Path:
        """`nnUNet_preprocessed/DatasetXXX_NAME`."""
        return self.preprocessed.parent

    @property
    def own(self) -> Path:
        """nnssl's folder of the configuration."""
        return own_folder(self.preprocessed)

    @cached_property
    def test(self) -> TestSet:
        """The images of imagesTs."""
        return read_test_set(self.dataset, self.plan.file_ending)

    @cached_property
    def origins(self) -> dict[str, str]:
        """Patient -> dataset of origin, of every patient that the dataset knows, imagesTs too."""
        cases = (*self.training, *self.validation)
        records = read_all_cases(self.dataset) or read_cases(self.dataset, cases)
        name = self.dataset.name.split("_", 1)[-1]
        known = {record.patient: record.dataset for record in records.values()}
        return {**dict.fromkeys(self.test.patients.values(), name), **known}


def choose_images(fold: PretrainingFold, wanted: bool | Sequence[str]) -> ChosenImages:
    """Images that may be trained on.

    Left out are images of patients of validation cases or test images. Where the patient is not one
    of the dataset's, all images of a patient of which one resembles a validation or test image are
    left out.

    Args:
        wanted: all collections, none, or those of these names.

    Raises:
        ValueError: There is no collection of such a name, or its plans are others.
    """
    images = [
        ChosenImage(folder, image, fold.origins.get(image.patient, folder.name))
        for folder in _find_wanted(fold, wanted)
        for image in read_images(folder)
    ]
    reasons = _find_reasons(images, fold) if images else []
    chosen = tuple(each for each, why in zip(images, reasons, strict=True) if why is None)
    return ChosenImages(chosen, dict(sorted(Counter(filter(None, reasons)).items())))


def find_recorded(own: Path, record: Mapping[str, Any]) -> ChosenImages:
    """The images of a checkpoint's record, whatever else is there; ValueError where one is lost."""
    images = read_seen_images(record)
    found, folders = find_images(images, own), find_collections(own)
    lost = [image.name for image, there in zip(images, found, strict=True) if there is None]
    if lost:
        raise ValueError(
            f"the run was trained on images without labels of which {len(lost)} are gone or have "
            f"changed in {own}: {', '.join(lost[:MOST_NAMED])}. Put them back ({COMMAND} with the "
            "same files), or start a new run."
        )
    members = (
        ChosenImage(folders[image.collection], replace(there, patient=image.patient), image.dataset)
        for image, there in zip(images, found, strict=True)
        if there is not None
    )
    return ChosenImages(tuple(members), dict(record["left_out"]))


def _find_wanted(fold: PretrainingFold, wanted: bool | Sequence[str]) -> list[Path]:
    if wanted is False:
        return []
    found = find_collections(fold.own)
    names = list(found) if wanted is True else sorted(set(wanted))
    if unknown := sorted(set(names) - set(found)):
        raise ValueError(
            f"sampling.unlabelled: there are no images {unknown}; {fold.own} has "
            f"{', '.join(found) or 'none'} ({COMMAND} makes them)"
        )
    for name in names:
        if read_manifest(found[name]).get("voxels") != fold.plan.voxels:
            raise ValueError(
                f"{found[name]} was preprocessed by other plans than today's; make it anew "
                f"({COMMAND} --remove {name}, then the same command as before), or train without "
                "it (sampling.unlabelled: false)"
            )
    return [found[name] for name in names]


def _find_reasons(images: Sequence[ChosenImage], fold: PretrainingFold) -> list[str | None]:
    """Why each image is left out; None: it is not."""
    validation = {record.patient for record in read_cases(fold.dataset, fold.validation).values()}
    test = fold.test.patients.values()
    by_patient = {**dict.fromkeys(test, OF_TEST), **dict.fromkeys(validation, OF_VALIDATION)}
    strangers = [each for each in images if each.image.patient not in fold.origins]
    by_content = _compare_strangers(strangers, fold) if strangers else {}
    return [
        by_patient.get(each.image.patient, by_content.get((each.collection, each.image.patient)))
        for each in images
    ]


def _compare_strangers(
    strangers: Sequence[ChosenImage], fold: PretrainingFold
) -> dict[tuple[str, str], str]:
    """(collection, patient) -> why, for unknown patients with a copy of a held-out image."""
    queries = stack_thumbnails([each.image.decode_thumbnail() for each in strangers])
    held_out = read_cases(fold.dataset, sorted(fold.validation))
    candidates = load_case_thumbnails(fold.preprocessed, [*held_out])
    patients = [record.patient for record in held_out.values()]
    test = load_test_thumbnails(fold.test, fold.own, fold.plan)
    keys = [(each.collection, each.image.patient) for each in strangers]
    why = dict.fromkeys(keys, NOT_COMPARED) if test is None else {}
    if test is not None:
        candidates = np.concatenate([candidates, test])
        patients += [patient for _, patient in sorted(fold.test.patients.items())]
    likeness = measure_likeness(candidates, patients)
    copies = [
        each
        for each in find_copies(queries, candidates, flips=True)
        if is_beyond_likeness(each.correlation, likeness[each.candidate])
    ]
    return why | {keys[copy.query]: COPIES for copy in copies}
