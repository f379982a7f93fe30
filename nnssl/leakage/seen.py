"""What a training has seen: read from its checkpoint, of this or an older version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnssl.data.pool.settings import MARK
from nnssl.data.unlabelled.records import UnlabelledImage, find_collections, read_images
from nnssl.nnunet.cases import CaseRecord, Patient, read_all_cases, read_cases
from nnssl.nnunet.paths import find_data_identifier
from nnssl.nnunet.splits import read_fold

STOCK = "stock"  # kind of a training by nnU-Net's own trainers, which does not list its cases
NOTHING_TOLD = "The weights do not say what was seen."
RECORD_KEYS = ("patient", "dataset", "sha256")  # of training cases, in a checkpoint
SEEN_IMAGE_KEYS = ("identifiers", "patients", "datasets", "contents")  # in a checkpoint


class SeenImage(NamedTuple):
    """An image without label, as a checkpoint lists it."""

    collection: str
    identifier: str
    patient: str
    dataset: str  # of origin of the patient
    content: str  # beginning of the hash of what it was made from

    @property
    def name(self) -> str:
        return f"{self.collection}/{self.identifier}"


@dataclass(frozen=True)
class Seen:
    """What a training has seen, by its checkpoint and the records of its dataset."""

    untold: str  # what is to be said where nothing is known of it
    dataset: Path  # `nnUNet_preprocessed/DatasetXXX_NAME`, whether or not it is at hand
    fold: int | str | None  # its fold, or `all`
    configuration: str | None  # nnU-Net's configuration
    plans: str | None  # name of the plans
    configuration_folder: Path | None  # nnU-Net's folder of the configuration; None: not known
    cases: tuple[str, ...] | None  # for training; None: not known
    records: Mapping[str, CaseRecord]  # of these cases; without records, each is a patient
    has_records: bool  # whether the dataset has records of at least one of these cases
    images: tuple[SeenImage, ...]  # images without labels
    members: Mapping[str, Sequence[str]]  # of a pool: dataset in it -> datasets of origin
    folds: Mapping[str, str]  # of a pool: name of each dataset in it -> hash of its folds
    signatures: Mapping[str, np.ndarray]  # of cases, and of images by their name; may be empty

    @classmethod
    def of(cls, own: Mapping[str, Any], preprocessed: Path) -> Seen:
        """What a checkpoint says of one training.

        Args:
            own: an entry of `trace_ancestry`.

        Raises:
            ValueError: the records of the dataset are damaged.
        """
        dataset = preprocessed / str(own.get("dataset"))
        listed, plans = own.get("cases", {}), own.get("plans", {})
        cases = listed.get("train")
        if cases is None and own.get("kind") == STOCK:
            cases = _find_stock_cases(dataset, own.get("fold"))
        known = read_all_cases(dataset) or _read_stored(listed)
        recorded = bool(known)
        known = known or read_cases(dataset, cases or ())
        records = {case: known[case] for case in cases or () if case in known}
        identifier = find_data_identifier(plans, own.get("configuration"))
        mark = plans.get(MARK, {})
        images = tuple(read_seen_images(listed.get("unlabelled", {})))
        names = [*(cases or ()), *(image.name for image in images)]
        signatures = np.asarray(listed.get("signatures", ()))
        return cls(
            untold=own.get("untold", NOTHING_TOLD),
            dataset=dataset,
            fold=own.get("fold"),
            configuration=own.get("configuration"),
            plans=plans.get("plans_name"),
            configuration_folder=None if identifier is None else dataset / identifier,
            cases=None if cases is None else tuple(cases),
            records=records,
            has_records=recorded and bool(records),
            images=images,
            members=mark.get("members", {}),
            folds=mark.get("splits", {}),
            signatures=dict(zip(names, signatures, strict=True)) if len(signatures) else {},
        )

    @property
    def patients(self) -> set[Patient]:
        """Patients of the training cases and of the images without labels."""
        return set(self.keys.values())

    @property
    def origins(self) -> set[str]:
        """Datasets of origin of all that was seen."""
        of_members = {origin for origins in self.members.values() for origin in origins}
        of_cases = of_members or {record.dataset for record in self.records.values()}
        named = of_cases | {image.dataset for image in self.images}
        return named or {self.dataset.name.split("_", 1)[-1]}

    @cached_property
    def keys(self) -> dict[str, Patient]:
        """Patient of every case and image, by the names that `signatures` has too."""
        origin = self.dataset.name.split("_", 1)[-1]
        of_cases = {
            case: self.records[case].key if case in self.records else (origin, case)
            for case in self.cases or ()
        }
        return of_cases | {image.name: (image.dataset, image.patient) for image in self.images}


def _find_stock_cases(dataset: Path, fold: int | str | None) -> list[str] | None:
    """Training cases of nnU-Net's own trainers, by the folds as they are today."""
    with suppress(ValueError, IndexError, KeyError):
        if fold == "all":
            return sorted({case for part in read_fold(dataset, 0) for case in part})
        if fold is not None:
            return read_fold(dataset, fold)[0]
    return None


def _read_stored(listed: Mapping[str, Any]) -> dict[str, CaseRecord]:
    """Records that the checkpoint itself holds, of cases whose patients were known."""
    columns = listed.get("records") or {}
    rows = zip(*(columns.get(key, ()) for key in RECORD_KEYS), strict=True)
    return {
        case: CaseRecord(patient, dataset, sha256=sha256)
        for case, (patient, dataset, sha256) in zip(listed.get("train") or (), rows, strict=False)
    }


def read_seen_images(record: Mapping[str, Any]) -> list[SeenImage]:
    """Images without labels of the record `cases.unlabelled` of a checkpoint."""
    return [
        SeenImage(collection, *values)
        for collection, lists in record.get("images", {}).items()
        for values in zip(*(lists[key] for key in SEEN_IMAGE_KEYS), strict=True)
    ]


def find_images(
    images: Sequence[SeenImage],
    own: Path,
    read: Callable[[Path], list[UnlabelledImage]] = read_images,
) -> list[UnlabelledImage | None]:
    """Records of images that a checkpoint lists; None for one that is gone or has changed."""
    folders = find_collections(own)
    known = {
        (name, record.identifier): record
        for name in {image.collection for image in images} & folders.keys()
        for record in read(folders[name])
    }
    found = [known.get((image.collection, image.identifier)) for image in images]
    return [
        record if record and record.content.startswith(image.content) else None
        for image, record in zip(images, found, strict=True)
    ]
