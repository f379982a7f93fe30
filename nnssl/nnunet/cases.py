"""Which patient, dataset and modality a case comes from: ``nnssl/cases.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from nnssl.common.files import read_json
from nnssl.nnunet.paths import CASES_FILE

Patient = tuple[str, str]  # dataset of origin, patient: equal keys of two datasets are two patients


@dataclass(frozen=True)
class CaseRecord:
    """Origin of one case.

    Args:
        patient: Cases of one patient are never parted by a fold.
        dataset: Dataset of origin.
        modality: Modality, or ``unknown``.
        orientation: Direction in which the image axes x, y, z grow (``LPS``: towards left,
            posterior, superior); array axes are the reverse (z, y, x). ``None``: not recorded.
        sha256: Hash of the file that it was made from. ``None``: not recorded.
    """

    patient: str
    dataset: str
    modality: str = "unknown"
    orientation: str | None = None
    sha256: str | None = None

    @property
    def key(self) -> Patient:
        """Dataset of origin and patient."""
        return self.dataset, self.patient


def read_cases(preprocessed_folder: Path, identifiers: Iterable[str]) -> dict[str, CaseRecord]:
    """Records of cases of ``nnUNet_preprocessed/DatasetXXX_NAME``.

    Where the dataset has no ``nnssl/cases.json`` (it was not made by nnSSL), each case counts as a
    patient of its own.

    Raises:
        ValueError: The file lacks one of the cases, or an entry lacks patient or dataset.
    """
    path = preprocessed_folder / CASES_FILE
    if not path.exists():
        name = preprocessed_folder.name.split("_", 1)[-1]
        return {each: CaseRecord(patient=each, dataset=name) for each in identifiers}
    known = _read_entries(path)
    wanted = list(identifiers)
    if missing := sorted(set(wanted) - set(known)):
        raise ValueError(
            f"{path} has no entry for {missing[:10]}; add patient and dataset of these cases, "
            "or convert the dataset again"
        )
    return {each: _record(known[each]) for each in wanted}


def read_all_cases(preprocessed_folder: Path, part: str | None = None) -> dict[str, CaseRecord]:
    """Records of all cases of a dataset; none where it has no ``nnssl/cases.json``.

    Args:
        preprocessed_folder: ``nnUNet_preprocessed/DatasetXXX_NAME``.
        part: ``Ts``: the cases of imagesTs only; ``Tr``: the others. ``None``: both.
    """
    path = preprocessed_folder / CASES_FILE
    known = _read_entries(path) if path.is_file() else {}
    return {
        case: _record(entry)
        for case, entry in known.items()
        if part is None or entry.get("part", "Tr") == part
    }


def describe_case(
    patient: str, dataset: str, modality: str, orientation: str | None, source: str, sha256: str
) -> dict[str, Any]:
    """Entry of a case: what `CaseRecord` reads, and the file that it was made from."""
    return {
        "patient": patient,
        "dataset": dataset,
        "modality": modality,
        "orientation": orientation,
        "source": source,
        "sha256": sha256,
    }


def make_cases_file(cases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Content of ``cases.json`` of the entries."""
    return {"cases": cases, "version": 1}


class _Entry(TypedDict):
    patient: str
    dataset: str
    modality: NotRequired[str]
    orientation: NotRequired[str | None]
    part: NotRequired[str]
    sha256: NotRequired[str | None]


class _CasesFile(TypedDict):
    cases: NotRequired[dict[str, _Entry]]


def _read_entries(path: Path) -> dict[str, dict[str, Any]]:
    """Case -> its entry in a ``cases.json``."""
    found: dict[str, dict[str, Any]] = read_json(path, _CasesFile).get("cases", {})
    return found


def _record(entry: Mapping[str, Any]) -> CaseRecord:
    known = {field.name for field in fields(CaseRecord)}
    return CaseRecord(**{key: value for key, value in entry.items() if key in known})
