"""Which images without labels a run trains on: not those of held-out patients, nor their copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.common.files import read_json
from nnssl.data.thumbnails import near_duplicates, stacked, thumbnails
from nnssl.data.unlabelled.job import Plan
from nnssl.data.unlabelled.preprocess import complete
from nnssl.data.unlabelled.records import PoolImage, pools, read_manifest
from nnssl.leakage.test_set import TestSet, read_test_set, thumbnails_of_test_set
from nnssl.nnunet.cases import CASES_FILE, read_cases

COMMAND = "nnssl_preprocess_unlabelled"
HASH = 16  # letters of the hash of an image that a checkpoint keeps
MOST_NAMED = 5
OF_VALIDATION = "patients of validation cases"
OF_TEST = "patients of test images"
COPIES = "patients unknown, copies of validation or test images"
NOT_COMPARED = "patients unknown, test images not at hand to compare with"


@dataclass(frozen=True)
class ChosenImage:
    """One image without label that may be trained on.

    Attributes:
        pool: name of its pool.
        folder: of the pool.
        image: its record.
        dataset: dataset of origin: that of its patient in the dataset, else the pool's name.
    """

    pool: str
    folder: Path
    image: PoolImage
    dataset: str


@dataclass(frozen=True)
class Unlabelled:
    """What a run trains on beside its training cases.

    Attributes:
        members: the images, sorted by pool and identifier.
        left_out: why -> number of images.
    """

    members: tuple[ChosenImage, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """One line for the log."""
        patients = len({(each.dataset, each.image.patient) for each in self.members})
        names = ", ".join(sorted({each.pool for each in self.members})) or "none"
        text = f"{len(self.members)} images without labels of {patients} patients ({names})"
        reasons = [f"{count} ({why})" for why, count in self.left_out.items()]
        return f"{text}; left out: {', '.join(reasons) or 'none'}"

    def record(self) -> dict[str, Any]:
        """Plain data for a checkpoint, from which `recorded` finds the same images."""
        images: dict[str, dict[str, list[str]]] = {}
        for each in self.members:
            keys = ("identifiers", "patients", "datasets", "contents")
            lists = images.setdefault(each.pool, {key: [] for key in keys})
            image = each.image
            values = (image.identifier, image.patient, each.dataset, image.content[:HASH])
            for key, value in zip(keys, values, strict=True):
                lists[key].append(value)
        return {"images": images, "left_out": dict(self.left_out)}


@dataclass(frozen=True)
class Held:
    """What a fold holds back.

    Attributes:
        dataset: `nnUNet_preprocessed/DatasetXXX_NAME`.
        preprocessed: nnU-Net's folder of the configuration in it.
        own: nnssl's folder of the configuration.
        plan: plans and configuration.
        training: identifiers of the training cases.
        validation: identifiers of the validation cases; none for fold `all`.
    """

    dataset: Path
    preprocessed: Path
    own: Path
    plan: Plan
    training: tuple[str, ...]
    validation: tuple[str, ...]

    @cached_property
    def test(self) -> TestSet:
        """The images of imagesTs."""
        ending = str(self.plan.dataset_json.get("file_ending", ".nii.gz"))
        return read_test_set(self.dataset, ending)


def choose(held: Held, wanted: bool | Sequence[str]) -> Unlabelled:
    """Images that may be trained on.

    Left out are images of patients of validation cases or test images. Where the patient is not one
    of the dataset's, all images of a patient of which one resembles a validation or test image are
    left out.

    Args:
        held: what the fold holds back.
        wanted: all pools, none, or those of these names.

    Raises:
        ValueError: There is no pool of such a name, or its plans are others.
    """
    found = _wanted(held, wanted)
    images = [(name, folder, i) for name, folder in found.items() for i in complete(folder)]
    if not images:
        return Unlabelled()
    origins = _origins(held)
    members = [
        ChosenImage(name, folder, image, origins.get(image.patient, name))
        for name, folder, image in images
    ]
    why = _reasons(members, held, origins)
    kept = tuple(each for each, reason in zip(members, why, strict=True) if reason is None)
    return Unlabelled(kept, dict(sorted(Counter(filter(None, why)).items())))


def recorded(own: Path, record: Mapping[str, Any]) -> Unlabelled:
    """The images of a checkpoint's record, whatever else lies there today.

    Raises:
        ValueError: One of them is gone or has changed.
    """
    found, members, lost = pools(own), [], []
    for name, lists in record["images"].items():
        folder = found.get(name)
        there = {i.identifier: i for i in complete(folder)} if folder else {}
        for identifier, patient, dataset, content in zip(*lists.values(), strict=True):
            image = there.get(identifier)
            if folder is None or image is None or image.content[:HASH] != content:
                lost.append(f"{name}/{identifier}")
                continue
            members.append(ChosenImage(name, folder, replace(image, patient=patient), dataset))
    if lost:
        raise ValueError(
            f"the run was trained on images without labels of which {len(lost)} are gone or have "
            f"changed in {own}: {', '.join(lost[:MOST_NAMED])}. Put them back ({COMMAND} with the "
            "same files), or start a new run."
        )
    return Unlabelled(tuple(members), dict(record["left_out"]))


def _wanted(held: Held, wanted: bool | Sequence[str]) -> dict[str, Path]:
    if wanted is False:
        return {}
    found = pools(held.own)
    if wanted is not True:
        if unknown := sorted(set(wanted) - set(found)):
            raise ValueError(
                f"sampling.unlabelled: there are no images {unknown}; {held.own} has "
                f"{', '.join(found) or 'none'} ({COMMAND} makes them)"
            )
        found = {name: found[name] for name in sorted(set(wanted))}
    for name, folder in found.items():
        if read_manifest(folder).get("voxels") != held.plan.voxels:
            raise ValueError(
                f"{folder} was preprocessed by other plans than today's; make it anew ({COMMAND} "
                f"--remove {name}, then the same command as before), or train without it "
                "(sampling.unlabelled: false)"
            )
    return found


def _origins(held: Held) -> dict[str, str]:
    """Dataset of origin of every patient that the dataset knows, those of imagesTs included."""
    file = held.dataset / CASES_FILE
    known: Iterable[str] = (
        read_json(file).get("cases", {}) if file.is_file() else (*held.training, *held.validation)
    )
    records = read_cases(held.dataset, known).values()
    test = held.test.patients.values()
    own_name = held.dataset.name.split("_", 1)[-1]
    return {**dict.fromkeys(test, own_name), **{r.patient: r.dataset for r in records}}


def _reasons(
    members: Sequence[ChosenImage], held: Held, origins: Mapping[str, str]
) -> list[str | None]:
    """Why each image is left out; None: it is not."""
    validation = {r.patient for r in read_cases(held.dataset, held.validation).values()}
    test = set(held.test.patients.values())
    by_patient = {**dict.fromkeys(test, OF_TEST), **dict.fromkeys(validation, OF_VALIDATION)}
    unknown = [each for each in members if each.image.patient not in origins]
    caught = _caught(unknown, held) if unknown else {}
    return [
        by_patient.get(each.image.patient, caught.get((each.pool, each.image.patient)))
        for each in members
    ]


def _caught(unknown: Sequence[ChosenImage], held: Held) -> dict[tuple[str, str], str]:
    """(pool, patient) -> why, for unknown patients with an image that copies a held-out one."""
    queries = stacked([each.image.picture() for each in unknown])
    cache = held.own / "thumbnails.npz"
    own = thumbnails(held.preprocessed, cache, sorted(held.validation))
    test = thumbnails_of_test_set(held.test, held.own, held.plan)
    why = {} if test is not None else {(m.pool, m.image.patient): NOT_COMPARED for m in unknown}
    candidates = own if test is None else np.concatenate([own, test])
    for match in near_duplicates(queries, candidates, flips=True):
        member = unknown[match.query]
        why[member.pool, member.image.patient] = COPIES
    return why
